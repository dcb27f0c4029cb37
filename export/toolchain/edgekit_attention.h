/* Attention of a CPU over a cache of half floats, in float32 throughout. Needs nothing of ggml.
 *
 * Why: llama.cpp's kernel for few tokens sums values in half floats, tests every cell of every sequence for
 * every head, and takes another path for long prompts, whose sums differ. A token's result then depends on
 * how many tokens are computed with it. Here it does not, to the last bit:
 *
 *   - Softmax works in powers of two with a whole number as its running maximum, so that scaling by a new
 *     maximum is exact, and it does not matter where a block of cells ends.
 *   - Values are summed in doubles, which hold each product exactly, and a masked cell adds 0: it does not
 *     matter which masked cells lie between, nor whether they are passed over. In what order a sequence's cells
 *     lie, which depends on who else came and went, shows in the sum's last bits only, and is lost when it is
 *     rounded to a float.
 *   - A dot product sums in one order (edgekit_simd.h) however rows and cells are grouped.
 *
 * Rows are the query heads of a token that share a head of the cache, or those of several tokens whose cells
 * are nearly the same: they share what is loaded and converted.
 */
#pragma once

#include "edgekit_attention_block.h"

#if defined(EDGEKIT_SIMD)

namespace edgekit {

static const int WINDOW = 2048;  // cells that are listed at once
static const int MAX_ROWS = 48;  // rows (tokens * heads) of a task
static const int MAX_TOKENS = 16;

/* float32 values of scratch that a task needs. */
static inline size_t scratch_size(int dk, int dv) {
    return (size_t) MAX_ROWS * (dk + 2*dv) + (size_t) BLOCK * (dk + dv);
}

/* Which cells of a window a token may see, one bit each. */
struct Window {
    uint64_t live[WINDOW / 64];
    int count;
    bool biased;  // some live cell's mask is not 0

    void read(const uint16_t * mask, int n) {
        count = 0;
        uint32_t some = 0;
        memset(live, 0, sizeof(live));
        for (int i = 0; i < n; i += 32) {
            uint32_t bits, bias = 0;
            if (mask == nullptr) {
                bits = n - i >= 32 ? 0xFFFFFFFFu : (1u << (n - i)) - 1;
            } else if (n - i >= 32) {
                bits = live_halves(mask + i, &bias);
            } else {
                uint16_t rest[32];
                std::fill(rest, rest + 32, HALF_MINUS_INFINITY);
                memcpy(rest, mask + i, (n - i) * sizeof(uint16_t));
                bits = live_halves(rest, &bias);
            }
            live[i / 64] |= (uint64_t) bits << (i % 64);
            count += __builtin_popcount(bits);
            some |= bias;
        }
        biased = some != 0;
    }

    /* Numbers of the live cells from `first` on, and the last one again up to a multiple of 16. */
    void list(int first, int32_t * cells) const {
        int n = 0;
        for (int w = 0; w < WINDOW / 64; ++w) {
            for (uint64_t bits = live[w]; bits != 0; bits &= bits - 1) {
                cells[n++] = first + w*64 + __builtin_ctzll(bits);
            }
        }
        for (; n % 16 != 0; ++n) {
            cells[n] = cells[n - 1];
        }
    }
};

/* Tokens [t0, t1) and heads [h0, h1) of one batch; the heads share one of the cache; up to MAX_ROWS rows. */
class Task {
public:
    Task(const Attention & a, int64_t batch, int64_t t0, int64_t t1, int64_t h0, int64_t h1, float * scratch)
        : a(a), t0(t0), n_tokens((int) (t1 - t0)), n_heads((int) (h1 - h0)) {
        const int64_t kv_head = h0 / (a.heads / a.kv_heads);
        const int64_t kv_batch = batch / (a.batch / a.kv_batch);
        k = a.k + kv_head*a.k_head + kv_batch*a.k_batch;
        v = a.v + kv_head*a.v_head + kv_batch*a.v_batch;
        mask = a.mask ? a.mask + (batch % a.mask_batch)*a.mask_batch_size : nullptr;
        out = a.out + (size_t) batch*a.tokens*a.heads*a.dv*sizeof(float);
        double * values = (double *) scratch;
        float * q = scratch + 2*MAX_ROWS*a.dv;
        k_copies = q + MAX_ROWS*a.dk;
        v_copies = k_copies + BLOCK*a.dk;
        memset(values, 0, (size_t) n_tokens*n_heads*a.dv * sizeof(double));
        for (int i = 0; i < n_tokens*n_heads; ++i) {
            const int64_t token = t0 + i/n_heads, head = h0 + i%n_heads;
            memcpy(q + i*a.dk, a.q + token*a.q_token + head*a.q_head + batch*a.q_batch, a.dk * sizeof(float));
            rows[i] = Row{q + i*a.dk, values + i*a.dv, nullptr, slope(head), 0.0, -INFINITY, token, head};
        }
    }

    void run() {
        for (int64_t first = 0; first < a.cells; first += WINDOW) {
            const int n = (int) std::min((int64_t) WINDOW, a.cells - first);
            Window all;
            int seen = 0;
            for (int t = 0; t < n_tokens; ++t) {
                windows[t].read(mask ? mask_of(t) + first : nullptr, n);
                seen += windows[t].count;
            }
            if (n_tokens > 1) {
                join(all);
            }
            if (n_tokens > 1 && (int64_t) all.count*n_tokens*2 <= (int64_t) seen*3) {
                together(all, (int) first);
            } else {
                for (int t = 0; t < n_tokens; ++t) {
                    alone(t, (int) first);
                }
            }
        }
        for (int i = 0; i < n_tokens*n_heads; ++i) {
            finish(rows[i]);
        }
    }

private:
    const Attention & a;
    const int64_t t0;
    const int n_tokens, n_heads;
    const char * k, * v, * mask;
    char * out;
    float * k_copies, * v_copies;
    Row rows[MAX_ROWS];
    Window windows[MAX_TOKENS];
    int32_t cells[WINDOW + 16];
    float bias[MAX_TOKENS][BLOCK];

    const uint16_t * mask_of(int t) const { return (const uint16_t *) (mask + (t0 + t)*a.mask_token); }

    /* Of ALiBi. Press et al. 2022, as ggml computes it. */
    float slope(int64_t head) const {
        if (!(a.max_bias > 0.0f)) {
            return 1.0f;
        }
        const int64_t power = (int64_t) 1 << (int) std::floor(std::log2((double) a.heads));
        return head < power ? std::pow(std::pow(2.0f, -a.max_bias / power), (float) (head + 1))
                            : std::pow(std::pow(2.0f, -a.max_bias / 2.0f / power), (float) (2*(head - power) + 1));
    }

    void join(Window & all) const {
        all = windows[0];
        for (int t = 1; t < n_tokens; ++t) {
            for (int w = 0; w < WINDOW / 64; ++w) {
                all.live[w] |= windows[t].live[w];
            }
        }
        all.count = 0;
        for (int w = 0; w < WINDOW / 64; ++w) {
            all.count += __builtin_popcountll(all.live[w]);
        }
    }

    void read_bias(int t, const int32_t * list, int n) {
        const uint16_t * m = mask_of(t);
        uint16_t halves[BLOCK];
        for (int i = 0; i < n; ++i) {
            halves[i] = m[list[i]];
        }
        std::fill(halves + n, halves + (n + 15) / 16 * 16, HALF_MINUS_INFINITY);
        for (int i = 0; i < n; i += LANES) {
            v_store(bias[t] + i, v_load(halves + i));
        }
    }

    /* The cells that one token sees, straight from the cache. */
    void alone(int t, int first) {
        const Window & window = windows[t];
        if (window.count == 0) {
            return;
        }
        window.list(first, cells);
        for (int i = 0; i < window.count; i += BLOCK) {
            const int n = std::min(BLOCK, window.count - i);
            if (window.biased) {
                read_bias(t, cells + i, n);
            }
            for (int h = 0; h < n_heads; ++h) {
                rows[t*n_heads + h].bias = window.biased ? bias[t] : nullptr;
            }
            const Cells keys = {k, a.k_cell, cells + i, window.count - i, a.dk*2};
            const Cells values = {v, a.v_cell, cells + i, window.count - i, a.dv*2};
            attend_rows(a, rows + t*n_heads, n_heads, keys, values, n);
        }
    }

    /* The cells that any token sees, converted once a block. */
    void together(const Window & all, int first) {
        all.list(first, cells);
        for (int i = 0; i < all.count; i += BLOCK) {
            const int n = std::min(BLOCK, all.count - i);
            copy(Cells{k, a.k_cell, cells + i, all.count - i, a.dk*2}, a.dk, n, k_copies);
            copy(Cells{v, a.v_cell, cells + i, all.count - i, a.dv*2}, a.dv, n, v_copies);
            const Copies keys = {k_copies, (size_t) a.dk}, values = {v_copies, (size_t) a.dv};
            int begin = 0;  // rows from here on see some of these cells
            for (int t = 0; t < n_tokens; ++t) {
                if (mask) {
                    read_bias(t, cells + i, n);
                }
                const bool sees = !mask || std::any_of(bias[t], bias[t] + n, [](float b) { return b != -INFINITY; });
                for (int h = 0; h < n_heads; ++h) {
                    rows[t*n_heads + h].bias = mask ? bias[t] : nullptr;
                }
                if (!sees) {
                    attend_rows(a, rows + begin, t*n_heads - begin, keys, values, n);
                    begin = (t + 1)*n_heads;
                }
            }
            attend_rows(a, rows + begin, n_tokens*n_heads - begin, keys, values, n);
        }
    }

    /* Up to the next multiple of 16 cells, as the list goes. */
    static void copy(const Cells & from, int size, int n, float * to) {
        for (int i = 0; i < (n + 15) / 16 * 16; ++i) {
            const uint16_t * row = from.row(i);
            from.fetch(i);
            for (int d = 0; d < size; d += LANES) {
                v_store(to + i*size + d, v_load(row + d));
            }
        }
    }

    void finish(Row & row) const {
        if (a.sinks) {
            const float sink = a.sinks[row.head] * 0x1.715476p+0f;
            const float maximum = std::max(row.maximum, std::nearbyint(sink));
            const double factor = std::exp2((double) row.maximum - maximum);
            row.sum = row.sum*factor + std::exp2((double) sink - maximum);
            for (int d = 0; d < a.dv; ++d) {
                row.values[d] *= factor;
            }
        }
        const double inverse = row.sum == 0.0 ? 0.0 : 1.0 / row.sum;
        float * to = (float *) (out + (size_t) (row.token*a.heads + row.head)*a.dv*sizeof(float));
        for (int d = 0; d < a.dv; ++d) {
            to[d] = (float) (row.values[d] * inverse);
        }
    }
};

}  // namespace edgekit

#endif
