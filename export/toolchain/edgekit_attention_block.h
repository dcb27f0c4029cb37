/* The arithmetic of edgekit_attention.h: scores, weights and sums of a block of cells for a few rows.
 *
 * A row is a query head of a token. Rows that are given together share what is loaded and converted.
 */
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "edgekit_simd.h"

#if defined(EDGEKIT_SIMD)

namespace edgekit {

static const int BLOCK = 64;      // cells whose scores are held at once
static const int AHEAD = 32;      // cells that are fetched before they are used: no prefetcher follows the list

/* Strides are in bytes. Head h uses head h / (heads / kv_heads) of the cache. */
struct Attention {
    const char * q;     // float32 [batch][heads][tokens][dk]
    const char * k;     // half [kv_batch][kv_heads][cells][dk]
    const char * v;     // half [kv_batch][kv_heads][cells][dv]
    const char * mask;  // half [mask_batch][tokens][cells], added to the scores; null: none
    const float * sinks;  // [heads], a score without a value; null: none
    char * out;         // float32 [batch][tokens][heads][dv], without gaps
    size_t q_token, q_head, q_batch;
    size_t k_cell, k_head, k_batch;
    size_t v_cell, v_head, v_batch;
    size_t mask_token, mask_batch_size;
    int dk, dv;
    int64_t tokens, heads, kv_heads, batch, kv_batch, mask_batch, cells;
    float scale, softcap, max_bias;  // softcap: 0 for none. max_bias: of ALiBi, 0 for none

    bool fits() const {
        // The last is the scratch that ggml gives to each thread, see edgekit_attention_ggml.h.
        return 32*dv <= 16*dk + 8192 && dk % LANES == 0 && dv % LANES == 0 && kv_heads > 0 && heads % kv_heads == 0;
    }
};

/* Rows of the cache: half floats at listed cells, or float32 copies of a block of them. */
struct Cells {
    typedef const uint16_t * Row;
    const char * base;
    size_t stride;
    const int32_t * list;
    int listed;
    int row_bytes;
    Row row(int i) const { return (Row) (base + (size_t) list[i] * stride); }
    void fetch(int i) const {
        if (i + AHEAD < listed) {
            const char * x = (const char *) row(i + AHEAD);
            for (int j = 0; j < row_bytes; j += 64) {
                __builtin_prefetch(x + j);
            }
        }
    }
};
struct Copies {
    typedef const float * Row;
    const float * base;
    size_t stride;  // in values
    Row row(int i) const { return base + (size_t) i * stride; }
    void fetch(int) const {}
};

/* What a row has summed so far. */
struct Row {
    const float * q;
    double * values;      // [dv], times 2^-maximum
    const float * bias;   // of the block's cells; null: all 0
    float slope;
    double sum;           // of weights, times 2^-maximum
    float maximum;        // a whole number, or minus infinity
    int64_t token, head;
};

/* scores[r * BLOCK + i] = dot product of row r and cell i. The source has cells up to the next multiple of 16. */
template <int R, class Source>
static inline void score(const Row * rows, const Source & keys, int dk, int n, float * scores) {
    const int C = R == 1 ? SUMS : R == 2 ? SUMS / 2 : SUMS / 4;
    for (int i = 0; i < n; i += C) {
        typename Source::Row k[C];
        for (int c = 0; c < C; ++c) {
            k[c] = keys.row(i + c);
            keys.fetch(i + c);
        }
        Vec sums[SUMS];
        for (int a = 0; a < SUMS; ++a) {
            sums[a] = v_set(0.0f);
        }
        for (int d = 0; d < dk; d += LANES) {
            Vec q[R];
            for (int r = 0; r < R; ++r) {
                q[r] = v_load(rows[r].q + d);
            }
            for (int c = 0; c < C; ++c) {
                const Vec x = v_load(k[c] + d);
                for (int r = 0; r < R; ++r) {
                    sums[r*C + c] = v_fma(q[r], x, sums[r*C + c]);
                }
            }
        }
        float found[SUMS];
        v_sum_lanes(sums, found);
        for (int r = 0; r < R; ++r) {
            memcpy(scores + r*BLOCK + i, found + r*C, C * sizeof(float));
        }
    }
}

/* Turns the scores of a row into weights, with a new maximum where it rose. False: all are masked.
 * One copy in the program, so that no two callers have their multiplications fused differently. */
__attribute__((noinline)) static bool weigh(const Attention & a, Row & row, float * scores, int n) {
    const float log2e = 0x1.715476p+0f;
    const Vec scale = v_set(a.softcap != 0.0f ? a.scale / a.softcap : a.scale * log2e);
    const Vec slope = v_set(row.slope * log2e);
    Vec most = v_set(-INFINITY);
    float limits[LANES];  // of the last vector, which may reach past the cells
    std::fill(limits, limits + LANES, INFINITY);
    std::fill(limits + (n - 1) % LANES + 1, limits + LANES, -INFINITY);
    for (int i = 0; i < n; i += LANES) {
        Vec s = v_load(scores + i);
        if (a.softcap != 0.0f) {
            // tanh(x) = 1 - 2 / (exp(2x) + 1)
            const Vec x = v_min(v_max(v_mul(s, scale), v_set(-10.0f)), v_set(10.0f));
            const Vec e = v_exp2(v_mul(x, v_set(2.0f * log2e)), v_set(0.0f));
            const Vec tanh = v_sub(v_set(1.0f), v_div(v_set(2.0f), v_add(e, v_set(1.0f))));
            s = v_mul(tanh, v_set(a.softcap * log2e));
            if (row.bias) {
                s = v_fma(v_load(row.bias + i), slope, s);
            }
        } else {
            s = row.bias ? v_fma(s, scale, v_mul(v_load(row.bias + i), slope)) : v_mul(s, scale);
        }
        if (i + LANES >= n) {
            s = v_min(s, v_load(limits));
        }
        v_store(scores + i, s);
        most = v_max(most, s);
    }
    const float found = v_max_lane(most);
    if (found == -INFINITY) {
        return false;
    }
    const float maximum = std::max(row.maximum, std::nearbyint(found));
    if (maximum > row.maximum) {
        const double factor = std::exp2((double) row.maximum - maximum);  // of a whole number: exact
        row.sum *= factor;
        for (int d = 0; d < a.dv; ++d) {
            row.values[d] *= factor;
        }
        row.maximum = maximum;
    }
    for (int i = 0; i < n; i += LANES) {
        v_store(scores + i, v_exp2(v_load(scores + i), v_set(maximum)));
    }
    return true;
}

/* Adds weight times value of n cells, D vectors from d on; with them the weights, if FIRST.
 * In doubles, which hold each product exactly: the order of the cells is lost in rounding to float. */
template <int R, int D, bool FIRST, class Source>
static inline void add_values(Row * rows, const Source & values, int d, int n, const float * weights) {
    double total[R];
    Wide sums[R][D];
    for (int r = 0; r < R; ++r) {
        total[r] = rows[r].sum;
        for (int j = 0; j < D; ++j) {
            sums[r][j] = w_load(rows[r].values + d + j*LANES);
        }
    }
    for (int i = 0; i < n; ++i) {
        const typename Source::Row x = values.row(i) + d;
        if (FIRST) {
            values.fetch(i);
        }
        Wide v[D];
        for (int j = 0; j < D; ++j) {
            v[j] = w_widen(v_load(x + j*LANES));
        }
        for (int r = 0; r < R; ++r) {
            const double weight = weights[r*BLOCK + i];
            if (FIRST) {
                total[r] += weight;
            }
            for (int j = 0; j < D; ++j) {
                sums[r][j] = w_fma(v[j], w_set(weight), sums[r][j]);
            }
        }
    }
    for (int r = 0; r < R; ++r) {
        if (FIRST) {
            rows[r].sum = total[r];
        }
        for (int j = 0; j < D; ++j) {
            w_store(rows[r].values + d + j*LANES, sums[r][j]);
        }
    }
}

/* All of a value from d on, D vectors at a time and then fewer. */
template <int R, int D, class Source>
static inline void add_all_values(
    const Attention & a, Row * rows, const Source & values, int d, int n, const float * weights
) {
    for (; d + D*LANES <= a.dv; d += D*LANES) {
        if (d == 0) {
            add_values<R, D, true>(rows, values, d, n, weights);
        } else {
            add_values<R, D, false>(rows, values, d, n, weights);
        }
    }
    if constexpr (D > 1) {
        add_all_values<R, D / 2>(a, rows, values, d, n, weights);
    }
}

/* One block of cells for R rows. */
template <int R, class Source>
static inline void attend_block(
    const Attention & a, Row * rows, const Source & keys, const Source & values, int n
) {
    float scores[R * BLOCK];
    score<R>(rows, keys, a.dk, n, scores);
    bool any = false;
    for (int r = 0; r < R; ++r) {
        if (weigh(a, rows[r], scores + r*BLOCK, n)) {
            any = true;
        } else {
            memset(scores + r*BLOCK, 0, n * sizeof(float));
        }
    }
    if (!any) {
        return;
    }
    // As many sums as the registers hold: 32, and 16 for AVX2.
    add_all_values<R, EDGEKIT_SIMD == 256 ? (R <= 2 ? 2 : 1) : (R <= 2 ? 4 : 2)>(
        a, rows, values, 0, n, scores);
}

template <class Source>
static inline void attend_rows(
    const Attention & a, Row * rows, int count, const Source & keys, const Source & values, int n
) {
    while (count > 0) {
        const int r = count == 5 ? 3 : std::min(count, 4);
        switch (r) {
            case 1: attend_block<1>(a, rows, keys, values, n); break;
            case 2: attend_block<2>(a, rows, keys, values, n); break;
            case 3: attend_block<3>(a, rows, keys, values, n); break;
            default: attend_block<4>(a, rows, keys, values, n); break;
        }
        rows += r;
        count -= r;
    }
}

}  // namespace edgekit

#endif
