/* One vector type for the three instruction sets of edgekit_attention.h: AVX-512, AVX2 with FMA and F16C,
 * NEON of aarch64. Elsewhere EDGEKIT_SIMD stays undefined.
 *
 * Sums over a vector's lanes add first the two halves, then the halves of that, down to four lanes, and these
 * as (0+1)+(2+3). The order is part of the contract: a dot product has the same bits however it is grouped
 * with others. Multiplications that feed an addition are fused by name, so the compiler has no choice left.
 */
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define EDGEKIT_SIMD 512
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define EDGEKIT_SIMD 256
#elif defined(__aarch64__) && defined(__ARM_NEON)
#define EDGEKIT_SIMD 128
#endif

#if defined(EDGEKIT_SIMD)

#if EDGEKIT_SIMD == 128
#include <arm_neon.h>
#else
#include <immintrin.h>
#endif

namespace edgekit {

static const uint16_t HALF_MINUS_INFINITY = 0xFC00;

#if EDGEKIT_SIMD == 512

typedef __m512 Vec;
static const int LANES = 16;
static const int SUMS = 16;  // accumulators of dot products that fit the registers: a multiple of LANES

static inline Vec v_load(const float * x) { return _mm512_loadu_ps(x); }
static inline Vec v_load(const uint16_t * x) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *) x));
}
static inline void v_store(float * x, Vec a) { _mm512_storeu_ps(x, a); }
static inline Vec v_set(float a) { return _mm512_set1_ps(a); }
static inline Vec v_add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
static inline Vec v_sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
static inline Vec v_mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
static inline Vec v_div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
static inline Vec v_fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
static inline Vec v_max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
static inline Vec v_min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
static inline Vec v_round(Vec a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline float v_max_lane(Vec a) { return _mm512_reduce_max_ps(a); }

/* a * 2^k for whole k; 0 for k below -100. */
static inline Vec v_scale2(Vec a, Vec k) {
    return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(k, _mm512_set1_ps(-100.0f), _CMP_GE_OQ), a, k);
}

/* Sum of the lanes of each of SUMS vectors. */
static inline void v_sum_lanes(const Vec * a, float * out) {
    Vec b[8], c[4], d[2];
    for (int i = 0; i < 8; ++i) {
        b[i] = v_add(_mm512_shuffle_f32x4(a[2*i], a[2*i + 1], 0x44), _mm512_shuffle_f32x4(a[2*i], a[2*i + 1], 0xEE));
    }
    for (int i = 0; i < 4; ++i) {
        c[i] = v_add(_mm512_shuffle_f32x4(b[2*i], b[2*i + 1], 0x88), _mm512_shuffle_f32x4(b[2*i], b[2*i + 1], 0xDD));
    }
    for (int i = 0; i < 2; ++i) {
        d[i] = v_add(_mm512_shuffle_ps(c[2*i], c[2*i + 1], 0x88), _mm512_shuffle_ps(c[2*i], c[2*i + 1], 0xDD));
    }
    const Vec e = v_add(_mm512_shuffle_ps(d[0], d[1], 0x88), _mm512_shuffle_ps(d[0], d[1], 0xDD));
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    v_store(out, _mm512_permutexvar_ps(order, e));
}

/* LANES doubles. */
struct Wide { __m512d low, high; };
static inline Wide w_load(const double * x) { return {_mm512_loadu_pd(x), _mm512_loadu_pd(x + 8)}; }
static inline void w_store(double * x, Wide a) { _mm512_storeu_pd(x, a.low), _mm512_storeu_pd(x + 8, a.high); }
static inline Wide w_set(double a) { return {_mm512_set1_pd(a), _mm512_set1_pd(a)}; }
static inline Wide w_widen(Vec a) {
    return {_mm512_cvtps_pd(_mm512_castps512_ps256(a)), _mm512_cvtps_pd(_mm512_extractf32x8_ps(a, 1))};
}
static inline Wide w_fma(Wide a, Wide b, Wide c) {
    return {_mm512_fmadd_pd(a.low, b.low, c.low), _mm512_fmadd_pd(a.high, b.high, c.high)};
}

/* Of 32 half floats: which are not minus infinity, and which of those are not zero either. */
static inline uint32_t live_halves(const uint16_t * x, uint32_t * biased) {
    const __m512i a = _mm512_loadu_si512(x);
    const uint32_t live = _mm512_cmpneq_epi16_mask(a, _mm512_set1_epi16((short) HALF_MINUS_INFINITY));
    *biased = live & (uint32_t) _mm512_test_epi16_mask(a, a);
    return live;
}

#elif EDGEKIT_SIMD == 256

typedef __m256 Vec;
static const int LANES = 8;
static const int SUMS = 8;

static inline Vec v_load(const float * x) { return _mm256_loadu_ps(x); }
static inline Vec v_load(const uint16_t * x) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) x)); }
static inline void v_store(float * x, Vec a) { _mm256_storeu_ps(x, a); }
static inline Vec v_set(float a) { return _mm256_set1_ps(a); }
static inline Vec v_add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
static inline Vec v_sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
static inline Vec v_mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
static inline Vec v_div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
static inline Vec v_fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
static inline Vec v_max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
static inline Vec v_min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
static inline Vec v_round(Vec a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline float v_max_lane(Vec a) {
    __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_max_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_max_ss(b, _mm_movehdup_ps(b)));
}

static inline Vec v_scale2(Vec a, Vec k) {
    const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(k), _mm256_set1_epi32(127)), 23);
    const Vec kept = _mm256_cmp_ps(k, _mm256_set1_ps(-100.0f), _CMP_GE_OQ);
    return _mm256_and_ps(kept, _mm256_mul_ps(a, _mm256_castsi256_ps(power)));
}

static inline void v_sum_lanes(const Vec * a, float * out) {
    Vec b[4], c[2];
    for (int i = 0; i < 4; ++i) {
        b[i] = v_add(
            _mm256_permute2f128_ps(a[2*i], a[2*i + 1], 0x20), _mm256_permute2f128_ps(a[2*i], a[2*i + 1], 0x31));
    }
    for (int i = 0; i < 2; ++i) {
        c[i] = v_add(_mm256_shuffle_ps(b[2*i], b[2*i + 1], 0x88), _mm256_shuffle_ps(b[2*i], b[2*i + 1], 0xDD));
    }
    const Vec d = v_add(_mm256_shuffle_ps(c[0], c[1], 0x88), _mm256_shuffle_ps(c[0], c[1], 0xDD));
    v_store(out, _mm256_permutevar8x32_ps(d, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
}

struct Wide { __m256d low, high; };
static inline Wide w_load(const double * x) { return {_mm256_loadu_pd(x), _mm256_loadu_pd(x + 4)}; }
static inline void w_store(double * x, Wide a) { _mm256_storeu_pd(x, a.low), _mm256_storeu_pd(x + 4, a.high); }
static inline Wide w_set(double a) { return {_mm256_set1_pd(a), _mm256_set1_pd(a)}; }
static inline Wide w_widen(Vec a) {
    return {_mm256_cvtps_pd(_mm256_castps256_ps128(a)), _mm256_cvtps_pd(_mm256_extractf128_ps(a, 1))};
}
static inline Wide w_fma(Wide a, Wide b, Wide c) {
    return {_mm256_fmadd_pd(a.low, b.low, c.low), _mm256_fmadd_pd(a.high, b.high, c.high)};
}

static inline uint32_t half_bits(__m256i low, __m256i high) {
    const __m256i bytes = _mm256_permute4x64_epi64(_mm256_packs_epi16(low, high), 0xD8);
    return (uint32_t) _mm256_movemask_epi8(bytes);
}

static inline uint32_t live_halves(const uint16_t * x, uint32_t * biased) {
    const __m256i low = _mm256_loadu_si256((const __m256i *) x);
    const __m256i high = _mm256_loadu_si256((const __m256i *) (x + 16));
    const __m256i masked = _mm256_set1_epi16((short) HALF_MINUS_INFINITY);
    const __m256i zero = _mm256_setzero_si256();
    const uint32_t live = ~half_bits(_mm256_cmpeq_epi16(low, masked), _mm256_cmpeq_epi16(high, masked));
    *biased = live & ~half_bits(_mm256_cmpeq_epi16(low, zero), _mm256_cmpeq_epi16(high, zero));
    return live;
}

#else

typedef float32x4_t Vec;
static const int LANES = 4;
static const int SUMS = 16;

static inline Vec v_load(const float * x) { return vld1q_f32(x); }
static inline Vec v_load(const uint16_t * x) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(x))); }
static inline void v_store(float * x, Vec a) { vst1q_f32(x, a); }
static inline Vec v_set(float a) { return vdupq_n_f32(a); }
static inline Vec v_add(Vec a, Vec b) { return vaddq_f32(a, b); }
static inline Vec v_sub(Vec a, Vec b) { return vsubq_f32(a, b); }
static inline Vec v_mul(Vec a, Vec b) { return vmulq_f32(a, b); }
static inline Vec v_div(Vec a, Vec b) { return vdivq_f32(a, b); }
static inline Vec v_fma(Vec a, Vec b, Vec c) { return vfmaq_f32(c, a, b); }
static inline Vec v_max(Vec a, Vec b) { return vmaxq_f32(a, b); }
static inline Vec v_min(Vec a, Vec b) { return vminq_f32(a, b); }
static inline Vec v_round(Vec a) { return vrndnq_f32(a); }
static inline float v_max_lane(Vec a) { return vmaxvq_f32(a); }

static inline Vec v_scale2(Vec a, Vec k) {
    const int32x4_t power = vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(k), vdupq_n_s32(127)), 23);
    const uint32x4_t kept = vcgeq_f32(k, vdupq_n_f32(-100.0f));
    const Vec scaled = vmulq_f32(a, vreinterpretq_f32_s32(power));
    return vreinterpretq_f32_u32(vandq_u32(kept, vreinterpretq_u32_f32(scaled)));
}

static inline void v_sum_lanes(const Vec * a, float * out) {
    for (int i = 0; i < SUMS; i += 4) {
        v_store(out + i, vpaddq_f32(vpaddq_f32(a[i], a[i + 1]), vpaddq_f32(a[i + 2], a[i + 3])));
    }
}

struct Wide { float64x2_t low, high; };
static inline Wide w_load(const double * x) { return {vld1q_f64(x), vld1q_f64(x + 2)}; }
static inline void w_store(double * x, Wide a) { vst1q_f64(x, a.low), vst1q_f64(x + 2, a.high); }
static inline Wide w_set(double a) { return {vdupq_n_f64(a), vdupq_n_f64(a)}; }
static inline Wide w_widen(Vec a) { return {vcvt_f64_f32(vget_low_f32(a)), vcvt_high_f64_f32(a)}; }
static inline Wide w_fma(Wide a, Wide b, Wide c) {
    return {vfmaq_f64(c.low, a.low, b.low), vfmaq_f64(c.high, a.high, b.high)};
}

static inline uint32_t half_bits(uint16x8_t low, uint16x8_t high) {
    static const uint8_t weights[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    const uint8x16_t bits = vandq_u8(vcombine_u8(vmovn_u16(low), vmovn_u16(high)), vld1q_u8(weights));
    return (uint32_t) vaddv_u8(vget_low_u8(bits)) | (uint32_t) vaddv_u8(vget_high_u8(bits)) << 8;
}

static inline uint32_t live_halves(const uint16_t * x, uint32_t * biased) {
    const uint16x8_t masked = vdupq_n_u16(HALF_MINUS_INFINITY);
    uint32_t dead = 0, zero = 0;
    for (int i = 0; i < 32; i += 16) {
        const uint16x8_t low = vld1q_u16(x + i), high = vld1q_u16(x + i + 8);
        dead |= half_bits(vceqq_u16(low, masked), vceqq_u16(high, masked)) << i;
        zero |= half_bits(vceqzq_u16(low), vceqzq_u16(high)) << i;
    }
    *biased = ~dead & ~zero;
    return ~dead;
}

#endif

/* 2^(t - n) for n = round(t), by a polynomial with a relative error of 2e-8; not finite where t is not. */
static inline Vec v_exp2_fraction(Vec t, Vec n) {
    const Vec f = v_sub(t, n);
    Vec p = v_set(0x1.41fb8ep-13f);
    p = v_fma(p, f, v_set(0x1.5f3e54p-10f));
    p = v_fma(p, f, v_set(0x1.3b2d4ep-7f));
    p = v_fma(p, f, v_set(0x1.c6aee8p-5f));
    p = v_fma(p, f, v_set(0x1.ebfbdcp-3f));
    p = v_fma(p, f, v_set(0x1.62e430p-1f));
    return v_fma(p, f, v_set(1.0f));
}

/* 2^(t - maximum), a whole maximum; 0 for t = minus infinity. */
static inline Vec v_exp2(Vec t, Vec maximum) {
    const Vec n = v_round(t);
    return v_scale2(v_exp2_fraction(t, n), v_sub(n, maximum));
}

}  // namespace edgekit

#endif
