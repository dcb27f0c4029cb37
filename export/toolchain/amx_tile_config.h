/* Included before every C++ file of llama.cpp; does nothing where AMX is off.
 *
 * GCC 12's _tile_loadconfig() tells the compiler that LDTILECFG reads eight bytes where it reads 64. At -O2
 * and above GCC then drops ggml's stores to the rest of the structure (rows and columns of each tile), and
 * the first tile instruction ends the process with SIGILL. Source: amxtileintrin.h of GCC 12.2, operand
 * "m" (*((const void **) __config)); the same crash is reported in
 * https://github.com/ggml-org/llama.cpp/pull/26954.
 */
#ifdef __AMX_TILE__
#include <immintrin.h>

static inline void edgekit_tile_loadconfig(const void * config) {
    struct bytes { unsigned char all[64]; };
    __asm__ volatile("ldtilecfg %0" : : "m"(*(const struct bytes *) config));
}

#define _tile_loadconfig edgekit_tile_loadconfig
#endif
