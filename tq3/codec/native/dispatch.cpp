// Which kernels exist in this build, best first. Each says itself whether this processor runs it.
#include "kernels.h"

extern const tq3::Kernels kPortableKernels;
#if defined(__x86_64__)
extern const tq3::Kernels kAvx512Kernels, kAvx2Kernels;
#elif defined(__aarch64__)
extern const tq3::Kernels kNeonKernels;
#endif

namespace tq3 {

const Kernels* const kAllKernels[] = {
#if defined(__x86_64__)
    &kAvx512Kernels,
    &kAvx2Kernels,
#elif defined(__aarch64__)
    &kNeonKernels,
#endif
    &kPortableKernels,
};

const std::size_t kKernelCount = sizeof kAllKernels / sizeof *kAllKernels;

}  // namespace tq3
