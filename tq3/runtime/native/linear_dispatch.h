// The linear kernels that this processor can run.
#pragma once

#include <vector>

#include "linear.h"

namespace tq3 {

// Best first; never empty.
std::vector<const LinearKernels*> linear_kernels_that_run_here();

// Whether a product of BF16 matrices is the processor's fastest (AMX).
bool multiplies_bf16_fast();

}  // namespace tq3
