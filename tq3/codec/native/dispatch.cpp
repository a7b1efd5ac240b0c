// Which kernels exist, best first, and what each asks of the processor.
//
// The questions are asked here, in code for any processor: a file compiled for one instruction set
// may not run a single instruction before the answer is known.
#include "dispatch.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

extern const tq3::Kernels kPortableKernels;
#if defined(__x86_64__)
extern const tq3::Kernels kAvx512Kernels, kAvx2Kernels;
#elif defined(__aarch64__)
extern const tq3::Kernels kNeonKernels;
#endif

namespace tq3 {
namespace {

struct Choice {
    const Kernels* kernels;
    bool (*runs_here)();
};

bool always() {
    return true;
}

#if defined(__x86_64__)
// __builtin_cpu_supports also asks whether the operating system saves the wide registers.
bool has_avx2_and_f16c() {
    unsigned eax, ebx, ecx, edx;
    const bool f16c = __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
    return f16c && __builtin_cpu_supports("avx2");
}

bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

const Choice kBestFirst[] = {
#if defined(__x86_64__)
    {&kAvx512Kernels, has_avx512},
    {&kAvx2Kernels, has_avx2_and_f16c},
#elif defined(__aarch64__)
    {&kNeonKernels, always},
#endif
    {&kPortableKernels, always},
};

}  // namespace

std::vector<const Kernels*> kernels_that_run_here() {
    std::vector<const Kernels*> usable;
    for (const Choice& choice : kBestFirst)
        if (choice.runs_here()) usable.push_back(choice.kernels);
    return usable;
}

}  // namespace tq3
