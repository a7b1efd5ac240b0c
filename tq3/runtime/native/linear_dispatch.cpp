// Which linear kernels exist, best first, and what each asks of the processor. As in the codec's
// dispatch.cpp, the questions are asked in code for any processor.
#include "linear_dispatch.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

extern const tq3::LinearKernels kPortableLinear;
#if defined(__x86_64__)
extern const tq3::LinearKernels kAvx512VnniLinear, kAvx2Linear;
#ifdef TQ3_AMX
extern const tq3::LinearKernels kAmxLinear;
#endif
#elif defined(__aarch64__)
extern const tq3::LinearKernels kNeonLinear;
#endif

namespace tq3 {
namespace {

struct Choice {
    const LinearKernels* kernels;
    bool (*runs_here)();
};

bool always() {
    return true;
}

#if defined(__x86_64__)
bool has_avx2_and_f16c() {
    unsigned eax, ebx, ecx, edx;
    const bool f16c = __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
    return f16c && __builtin_cpu_supports("avx2");
}

bool has_avx512_vnni_and_vbmi() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni");
}

#ifdef TQ3_AMX
bool has_amx() {
    unsigned eax, ebx, ecx, edx;
    constexpr unsigned kTilesAndBytes = 3U << 24;  // AMX-TILE and AMX-INT8
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
    if ((edx & kTilesAndBytes) != kTilesAndBytes || !has_avx512_vnni_and_vbmi()) return false;
    // The kernel wants to be asked for the tiles' eight KiB of state, once in a process.
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif
#elif defined(__aarch64__)
bool has_dot_product() {
#if defined(__linux__)
    constexpr unsigned long kDotProduct = 1UL << 20;  // HWCAP_ASIMDDP
    return (getauxval(AT_HWCAP) & kDotProduct) != 0;
#else
    return true;  // every processor of Apple's computers
#endif
}
#endif

const Choice kBestFirst[] = {
#if defined(__x86_64__)
#ifdef TQ3_AMX
    {&kAmxLinear, has_amx},
#endif
    {&kAvx512VnniLinear, has_avx512_vnni_and_vbmi},
    {&kAvx2Linear, has_avx2_and_f16c},
#elif defined(__aarch64__)
    {&kNeonLinear, has_dot_product},
#endif
    {&kPortableLinear, always},
};

}  // namespace

std::vector<const LinearKernels*> linear_kernels_that_run_here() {
    std::vector<const LinearKernels*> usable;
    for (const Choice& choice : kBestFirst)
        if (choice.runs_here()) usable.push_back(choice.kernels);
    return usable;
}

bool multiplies_bf16_fast() {
#if defined(__x86_64__)
    unsigned eax, ebx, ecx, edx;
    constexpr unsigned kAmxBf16 = 1U << 22;
    return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (edx & kAmxBf16) &&
           __builtin_cpu_supports("avx512f");
#else
    return false;
#endif
}

}  // namespace tq3
