/*
 * For tests only, never shipped: the one function of bcryptprimitives.dll that Rust's standard library uses, which Wine 8
 * lacks, on top of the one that Wine has (advapi32's SystemFunction036, also known as RtlGenRandom).
 */
#include <windows.h>

BOOLEAN NTAPI SystemFunction036(PVOID bytes, ULONG count);

__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE bytes, SIZE_T count) {
    while (count > 0) {
        ULONG part = count > 0x10000000 ? 0x10000000 : (ULONG)count;
        if (!SystemFunction036(bytes, part)) return FALSE;
        bytes += part;
        count -= part;
    }
    return TRUE;
}
