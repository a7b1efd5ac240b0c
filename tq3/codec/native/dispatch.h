// The kernels of this build that run on this processor.
#pragma once

#include <vector>

#include "kernels.h"

namespace tq3 {

// Best first; the last one runs everywhere.
std::vector<const Kernels*> kernels_that_run_here();

}  // namespace tq3
