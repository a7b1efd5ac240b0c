// A libcuda.so.1 without a GPU: it says what it was asked to launch, for test_device.py.
//
// cuda-bindings asks it for every function by name; those that are not here are refused. The sizes
// of a kernel's arguments, which a driver finds in the code, come from SIZES, such as "8,4,8".
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

namespace {

constexpr int kSuccess = 0, kNotFound = 500;

int init(unsigned) {
    return kSuccess;
}

int driver_version(int* version) {
    *version = 13000;
    return kSuccess;
}

void* current = nullptr;

int get_current(void** context) {
    *context = current;
    return kSuccess;
}

int retain(void** context, int device) {
    std::printf("context of %d\n", device);
    *context = reinterpret_cast<void*>(0x55);
    return kSuccess;
}

int set_current(void* context) {
    current = context;
    return kSuccess;
}

int load(void** library, const void* code, void*, void*, unsigned, void*, void*, unsigned) {
    *library = const_cast<void*>(code);
    std::printf("load %.3s\n", static_cast<const char*>(code) + 1);
    return kSuccess;
}

int get_kernel(void** kernel, void*, const char* name) {
    std::printf("kernel %s\n", name);
    *kernel = reinterpret_cast<void*>(0x1234);
    return kSuccess;
}

int launch(void* function, unsigned x, unsigned y, unsigned z, unsigned block_x, unsigned block_y,
           unsigned block_z, unsigned shared, void* stream, void** arguments, void** extra) {
    std::printf("launch %p grid %u %u %u block %u %u %u shared %u stream %p extra %p\n", function,
                x, y, z, block_x, block_y, block_z, shared, stream, static_cast<void*>(extra));
    std::string sizes = std::getenv("SIZES");
    for (char* next = std::strtok(sizes.data(), ","); next; next = std::strtok(nullptr, ",")) {
        const auto* bytes = static_cast<const unsigned char*>(*arguments++);
        for (int i = 0; i < std::atoi(next); ++i) std::printf("%02x", bytes[i]);
        std::printf("\n");
    }
    std::fflush(stdout);
    return kSuccess;
}

}  // namespace

extern "C" int cuGetProcAddress_v2(const char* name, void** function, int, unsigned long long,
                                   int* status) {
    const struct {
        const char* name;
        void* function;
    } all[] = {
        {"cuGetProcAddress", reinterpret_cast<void*>(cuGetProcAddress_v2)},
        {"cuInit", reinterpret_cast<void*>(init)},
        {"cuDriverGetVersion", reinterpret_cast<void*>(driver_version)},
        {"cuCtxGetCurrent", reinterpret_cast<void*>(get_current)},
        {"cuDevicePrimaryCtxRetain", reinterpret_cast<void*>(retain)},
        {"cuCtxSetCurrent", reinterpret_cast<void*>(set_current)},
        {"cuLibraryLoadData", reinterpret_cast<void*>(load)},
        {"cuLibraryGetKernel", reinterpret_cast<void*>(get_kernel)},
        {"cuLaunchKernel", reinterpret_cast<void*>(launch)},
    };
    for (const auto& each : all)
        if (std::strcmp(each.name, name) == 0) {
            *function = each.function;
            if (status) *status = 0;
            return kSuccess;
        }
    *function = nullptr;
    if (status) *status = 1;
    return kNotFound;
}

extern "C" int cuGetProcAddress(const char* name, void** function, int version,
                                unsigned long long flags) {
    return cuGetProcAddress_v2(name, function, version, flags, nullptr);
}
