/* Before every file of llama.cpp: GCC 12's _tile_loadconfig tells the compiler of the first 8 bytes of the 64 that it
 * reads, so that the others are never written and the first use of AMX ends in an illegal instruction. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 11
#include <immintrin.h>
#undef _tile_loadconfig
#define _tile_loadconfig(config) __asm__ volatile("ldtilecfg\t%X0" ::"m"(*(const char(*)[64])(config)))
#endif
