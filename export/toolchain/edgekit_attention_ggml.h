/* Gives ggml's GGML_OP_FLASH_ATTN_EXT to edgekit_attention.h. Included by ggml-cpu/ops.cpp; the call there and
 * this include are put in by attention.py when a wheel is built.
 */
#pragma once

#include "edgekit_attention.h"

#if defined(EDGEKIT_SIMD)

/* The operands as edgekit takes them. False: some shape or type that ggml's own code is for. */
static bool edgekit_attention_operands(const ggml_tensor * dst, edgekit::Attention * a) {
    const ggml_tensor * q = dst->src[0], * k = dst->src[1], * v = dst->src[2];
    const ggml_tensor * mask = dst->src[3], * sinks = dst->src[4];
    if (q->type != GGML_TYPE_F32 || k->type != GGML_TYPE_F16 || v->type != GGML_TYPE_F16) {
        return false;
    }
    if (mask && (mask->type != GGML_TYPE_F16 || mask->ne[2] != 1)) {
        return false;  // a mask of its own for each head: no model has it
    }
    a->q = (const char *) q->data;
    a->k = (const char *) k->data;
    a->v = (const char *) v->data;
    a->mask = mask ? (const char *) mask->data : nullptr;
    a->sinks = sinks ? (const float *) sinks->data : nullptr;
    a->out = (char *) dst->data;
    a->q_token = q->nb[1], a->q_head = q->nb[2], a->q_batch = q->nb[3];
    a->k_cell = k->nb[1], a->k_head = k->nb[2], a->k_batch = k->nb[3];
    a->v_cell = v->nb[1], a->v_head = v->nb[2], a->v_batch = v->nb[3];
    a->mask_token = mask ? mask->nb[1] : 0;
    a->mask_batch_size = mask ? mask->nb[3] : 0;
    a->mask_batch = mask ? mask->ne[3] : 1;
    a->dk = (int) k->ne[0];
    a->dv = (int) v->ne[0];
    a->tokens = q->ne[1], a->heads = q->ne[2], a->batch = q->ne[3];
    a->cells = k->ne[1], a->kv_heads = k->ne[2], a->kv_batch = k->ne[3];
    const float * params = (const float *) dst->op_params;
    a->scale = params[0], a->max_bias = params[1], a->softcap = params[2];
    const bool rows_without_gaps = q->nb[0] == sizeof(float) && k->nb[0] == sizeof(ggml_fp16_t) &&
        v->nb[0] == sizeof(ggml_fp16_t) && ggml_is_contiguous(dst);
    return rows_without_gaps && v->ne[2] == k->ne[2] && v->ne[3] == k->ne[3] && a->fits();
}

/* Computes dst, all threads together. False: not done, for ggml's own code to do. */
static bool edgekit_flash_attn_ext(const ggml_compute_params * params, ggml_tensor * dst) {
    edgekit::Attention a;
    if (params->use_ref || !edgekit_attention_operands(dst, &a)) {
        return false;
    }
    // ggml_graph_plan() gives each thread GGML_FA_TILE_Q rows and GGML_FA_TILE_KV cells, and some more.
    static_assert(GGML_FA_TILE_Q >= edgekit::MAX_ROWS && GGML_FA_TILE_KV >= edgekit::BLOCK, "scratch is too small");
    const int64_t ith = params->ith, nth = params->nth;
    float * scratch = (float *) params->wdata + ith*edgekit::scratch_size(a.dk, a.dv);

    const int64_t group = a.heads / a.kv_heads;
    const int64_t all_rows = a.tokens*a.heads*a.batch;
    const auto run = [&](int64_t batch, int64_t t0, int64_t t1, int64_t h0, int64_t h1) {
        edgekit::Task(a, batch, t0, t1, h0, h1, scratch).run();
    };

    int64_t heads = std::min<int64_t>(group, edgekit::MAX_ROWS);
    while (group % heads != 0) {
        --heads;
    }
    int64_t parts = a.heads / heads;

    if (a.tokens*parts*a.batch < 4*nth && a.tokens*parts*a.batch % nth != 0) {
        // Few: as many heads for each thread, wherever they begin.
        const int64_t end = (ith + 1)*all_rows/nth;
        for (int64_t row = ith*all_rows/nth; row < end;) {
            const int64_t head = row % a.heads, token = row / a.heads % a.tokens, batch = row / a.heads / a.tokens;
            const int64_t n = std::min(heads - head % heads, end - row);
            run(batch, token, token + 1, head, head + n);
            row += n;
        }
        return true;
    }
    int64_t width = std::min<int64_t>(edgekit::MAX_TOKENS, edgekit::MAX_ROWS / heads);
    if (a.tokens < 16) {
        width = 1;  // most likely one token of each of several sequences
    }
    while (width > 1 && (a.tokens + width - 1)/width*parts*a.batch < 4*nth) {
        width /= 2;
    }
    const int64_t strips = (a.tokens + width - 1) / width;
    const int64_t tasks = strips*parts*a.batch;
    const auto task = [&](int64_t i) {
        const int64_t h0 = i % parts * heads, t0 = i / parts % strips * width, batch = i / parts / strips;
        run(batch, t0, std::min(t0 + width, a.tokens), h0, h0 + heads);
    };
    if (width == 1) {
        for (int64_t i = ith; i < tasks; i += nth) {
            task(i);
        }
        return true;
    }
    if (ith == 0) {
        ggml_threadpool_chunk_set(params->threadpool, (int) nth);
    }
    ggml_barrier(params->threadpool);
    for (int64_t i = ith; i < tasks; i = ggml_threadpool_chunk_add(params->threadpool, 1)) {
        task(i);
    }
    return true;
}

#else

static bool edgekit_flash_attn_ext(const ggml_compute_params *, ggml_tensor *) { return false; }

#endif
