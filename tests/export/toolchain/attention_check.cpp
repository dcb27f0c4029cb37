/* Compares edgekit_attention.h with the definition of attention in double precision, and its results with each
 * other where the same token is computed in other company. Compiled and run by test_attention.py.
 *
 * Prints a line for each case: name, greatest error, bits that differ. Exit code 1: some case failed.
 */
#include "edgekit_attention.h"

#include <cstdio>
#include <random>
#include <string>
#include <vector>

#ifndef EDGEKIT_SIMD
#error "compile with the options of an instruction set that edgekit_simd.h has"
#endif

using edgekit::Attention;

struct Case {
    const char * name;
    int dk, dv, heads, kv_heads, tokens, cells;
    enum { CAUSAL, INTERLEAVED, NONE, SPARSE } mask;
    float softcap, max_bias;
    bool sinks;
    float spread;  // of the scores
};

static float half_to_float(uint16_t h) {
    const int exponent = h >> 10 & 31, fraction = h & 1023;
    const float sign = h >> 15 ? -1.0f : 1.0f;
    if (exponent == 31) return fraction ? NAN : sign * INFINITY;
    return sign * (exponent ? std::ldexp(1024.0f + fraction, exponent - 25) : std::ldexp((float) fraction, -24));
}

/* Of a normal number, cut off. */
static uint16_t half(float x) {
    if (x == 0.0f) return 0;
    int exponent;
    const float m = std::frexp(std::fabs(x), &exponent);
    if (exponent < -13) return 0;
    return (uint16_t) ((x < 0 ? 0x8000 : 0) | (exponent + 14) << 10 | ((int) (m * 2048.0f) - 1024));
}

struct Data {
    Case c;
    std::vector<float> q, sinks;
    std::vector<uint16_t> k, v, mask;

    explicit Data(const Case & c) : c(c) {
        std::mt19937 random(7);
        std::normal_distribution<float> normal;
        q.resize((size_t) c.heads*c.tokens*c.dk);
        k.resize((size_t) c.cells*c.kv_heads*c.dk);
        v.resize((size_t) c.cells*c.kv_heads*c.dv);
        sinks.resize(c.heads);
        for (float & x : q) x = normal(random) * c.spread;
        for (uint16_t & x : k) x = half(normal(random));
        for (uint16_t & x : v) x = half(normal(random));
        for (float & x : sinks) x = normal(random);
        mask.assign((size_t) c.tokens*c.cells, 0xFC00);
        for (int t = 0; t < c.tokens; ++t) {
            for (int i = 0; i < c.cells; ++i) {
                const int last = c.cells - c.tokens + t;
                const bool live = c.mask == Case::CAUSAL ? i <= last
                    : c.mask == Case::INTERLEAVED ? i % c.tokens == t
                    : random() % 3 == 0 && i <= last;
                if (live) mask[(size_t) t*c.cells + i] = c.max_bias > 0 ? half((float) (i - last)) : 0;
            }
        }
    }

    Attention operands(std::vector<float> & out) const {
        out.assign((size_t) c.tokens*c.heads*c.dv, NAN);
        Attention a = {};
        a.q = (const char *) q.data(), a.k = (const char *) k.data(), a.v = (const char *) v.data();
        a.mask = c.mask == Case::NONE ? nullptr : (const char *) mask.data();
        a.sinks = c.sinks ? sinks.data() : nullptr;
        a.out = (char *) out.data();
        a.q_token = c.dk*4, a.q_head = (size_t) c.tokens*c.dk*4;
        a.k_cell = (size_t) c.kv_heads*c.dk*2, a.k_head = c.dk*2;
        a.v_cell = (size_t) c.kv_heads*c.dv*2, a.v_head = c.dv*2;
        a.mask_token = (size_t) c.cells*2;
        a.dk = c.dk, a.dv = c.dv, a.tokens = c.tokens, a.heads = c.heads, a.kv_heads = c.kv_heads;
        a.batch = a.kv_batch = a.mask_batch = 1;
        a.cells = c.cells;
        a.scale = 1.0f / std::sqrt((float) c.dk), a.softcap = c.softcap, a.max_bias = c.max_bias;
        return a;
    }

    /* In strips of tokens and groups of heads. */
    std::vector<float> computed(int strip, int group) const {
        std::vector<float> out;
        const Attention a = operands(out);
        std::vector<float> scratch(edgekit::scratch_size(c.dk, c.dv));
        for (int t = 0; t < c.tokens; t += strip) {
            for (int h = 0; h < c.heads; h += group) {
                edgekit::Task(a, 0, t, std::min(t + strip, c.tokens), h, h + group, scratch.data()).run();
            }
        }
        return out;
    }

    std::vector<double> defined() const {
        std::vector<double> out((size_t) c.tokens*c.heads*c.dv), p(c.cells);
        int power = 1;
        while (power*2 <= c.heads) power *= 2;
        for (int t = 0; t < c.tokens; ++t) {
            for (int h = 0; h < c.heads; ++h) {
                const int kv = h / (c.heads / c.kv_heads);
                const double slope = c.max_bias == 0 ? 1
                    : h < power ? std::pow(2.0, -c.max_bias/power * (h + 1))
                                : std::pow(2.0, -c.max_bias/2/power * (2*(h - power) + 1));
                double most = c.sinks ? sinks[h] : -INFINITY, sum = 0;
                for (int i = 0; i < c.cells; ++i) {
                    double s = 0;
                    for (int d = 0; d < c.dk; ++d) {
                        s += (double) q[((size_t) h*c.tokens + t)*c.dk + d] *
                            half_to_float(k[((size_t) i*c.kv_heads + kv)*c.dk + d]);
                    }
                    s /= std::sqrt((double) c.dk);
                    if (c.softcap) s = c.softcap * std::tanh(s / c.softcap);
                    if (c.mask != Case::NONE) s += slope * half_to_float(mask[(size_t) t*c.cells + i]);
                    p[i] = s;
                    most = std::max(most, s);
                }
                for (double & s : p) sum += s = std::exp(s - most);
                if (c.sinks) sum += std::exp(sinks[h] - most);
                for (int i = 0; i < c.cells; ++i) {
                    for (int d = 0; d < c.dv; ++d) {
                        out[((size_t) t*c.heads + h)*c.dv + d] +=
                            p[i] / sum * half_to_float(v[((size_t) i*c.kv_heads + kv)*c.dv + d]);
                    }
                }
            }
        }
        return out;
    }

    /* The same tokens, with cells of others between: after each cell `gap` masked ones. */
    Data spread_out(int gap) const {
        Data wide(*this);
        wide.c.cells = c.cells*(gap + 1);
        const auto widen = [&](const std::vector<uint16_t> & from, size_t row, size_t rows, uint16_t other) {
            std::vector<uint16_t> to(from.size()*(gap + 1), other);
            for (size_t i = 0; i < rows; ++i) {
                std::copy_n(&from[i*row], row, &to[i*(gap + 1)*row]);
            }
            return to;
        };
        wide.k = widen(k, (size_t) c.kv_heads*c.dk, c.cells, 0x7BFF);  // the greatest half: it must not be seen
        wide.v = widen(v, (size_t) c.kv_heads*c.dv, c.cells, 0x7BFF);
        wide.mask = widen(mask, 1, (size_t) c.cells*c.tokens, 0xFC00);
        return wide;
    }

    /* The same cells in another order, as they lie when other sequences came and went. */
    Data shuffled() const {
        Data other(*this);
        std::vector<int> order(c.cells);
        for (int i = 0; i < c.cells; ++i) order[i] = i;
        std::mt19937 random(11);
        std::shuffle(order.begin(), order.end(), random);
        const size_t k_row = (size_t) c.kv_heads*c.dk, v_row = (size_t) c.kv_heads*c.dv;
        for (int i = 0; i < c.cells; ++i) {
            std::copy_n(&k[order[i]*k_row], k_row, &other.k[i*k_row]);
            std::copy_n(&v[order[i]*v_row], v_row, &other.v[i*v_row]);
            for (int t = 0; t < c.tokens; ++t) {
                other.mask[(size_t) t*c.cells + i] = mask[(size_t) t*c.cells + order[i]];
            }
        }
        return other;
    }
};

static bool check(const Case & c) {
    const Data data(c);
    const std::vector<double> expected = data.defined();
    const int group = c.heads / c.kv_heads;
    const std::vector<float> single = data.computed(1, 1);
    double error = 0;
    for (size_t i = 0; i < single.size(); ++i) {
        error = std::max(error, std::fabs(single[i] - expected[i]));
        if (!(std::fabs(single[i] - expected[i]) < 1e3)) error = INFINITY;
    }
    const auto differing = [&](const std::vector<float> & other) {
        int n = 0;
        for (size_t i = 0; i < single.size(); ++i) n += memcmp(&single[i], &other[i], 4) != 0;
        return n;
    };
    int different = differing(data.computed(1, group));
    for (const int strip : {2, 3, 8, 16}) {
        if (strip*group <= edgekit::MAX_ROWS) different += differing(data.computed(strip, group));
    }
    if (c.mask != Case::NONE) {
        different += differing(data.spread_out(1).computed(1, group));
        different += differing(data.spread_out(6).computed(3, group));
    }
    different += differing(data.shuffled().computed(1, group));
    different += differing(data.shuffled().computed(3, group));
    // float32 rounds a score of size s by 6e-8 s, which changes a weight by as much
    const bool good = error < 1.5e-6 * std::max(1.0f, c.spread) && different == 0;
    std::printf("%-24s %.2e %d%s\n", c.name, error, different, good ? "" : "  FAILED");
    return good;
}

int main() {
    const Case cases[] = {
        {"64, 3 heads a group", 64, 64, 9, 3, 20, 150, Case::CAUSAL, 0, 0, false, 1},
        {"one cell", 64, 64, 2, 1, 1, 1, Case::CAUSAL, 0, 0, false, 1},
        {"65 cells", 64, 64, 2, 2, 3, 65, Case::CAUSAL, 0, 0, false, 1},
        {"8 sequences", 64, 64, 9, 3, 8, 8*37, Case::INTERLEAVED, 0, 0, false, 1},
        {"several windows", 64, 64, 4, 1, 5, 4500, Case::CAUSAL, 0, 0, false, 1},
        {"sparse", 80, 80, 5, 1, 17, 333, Case::SPARSE, 0, 0, false, 1},
        {"no mask", 96, 96, 4, 2, 6, 100, Case::NONE, 0, 0, false, 1},
        {"128, 8 heads a group", 128, 128, 16, 2, 18, 200, Case::CAUSAL, 0, 0, false, 1},
        {"7 heads a group", 64, 64, 14, 2, 9, 130, Case::CAUSAL, 0, 0, false, 1},
        {"192 and 128", 192, 128, 6, 3, 4, 90, Case::CAUSAL, 0, 0, false, 1},
        {"576 and 512, one group", 576, 512, 16, 1, 4, 70, Case::CAUSAL, 0, 0, false, 1},
        {"16 and 48", 16, 48, 2, 1, 4, 70, Case::CAUSAL, 0, 0, false, 1},
        {"softcap", 256, 256, 4, 2, 5, 140, Case::CAUSAL, 50, 0, false, 4},
        {"softcap, strong", 64, 64, 4, 2, 5, 140, Case::CAUSAL, 2, 0, false, 8},
        {"ALiBi", 64, 64, 6, 6, 7, 140, Case::CAUSAL, 0, 8, false, 1},
        {"softcap and ALiBi", 64, 64, 6, 3, 7, 140, Case::SPARSE, 20, 8, false, 2},
        {"sinks", 64, 64, 8, 2, 5, 140, Case::CAUSAL, 0, 0, true, 1},
        {"great scores", 64, 64, 4, 2, 17, 300, Case::CAUSAL, 0, 0, false, 30},
    };
    bool good = true;
    for (const Case & c : cases) good = check(c) && good;
    return good ? 0 : 1;
}
