// A libcuda.so.1 without a GPU: it executes nothing, refuses what a driver would, and says what it
// was asked to launch in the file that DRIVER_LOG names, if it does.
//
// cuda-bindings asks it for every function by name; those that are not here are refused. What a
// kernel takes, it finds where a driver does, in the machine code: sizes of parameters and the
// largest block. Their types are in the kernel's name.
#include <cxxabi.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <string>
#include <vector>

namespace {

constexpr int kSuccess = 0, kInvalidValue = 1, kInvalidContext = 201, kNotFound = 500,
              kMisalignedAddress = 716;

struct Kernel {
    std::string name;
    std::vector<std::string> types;
    std::vector<unsigned> sizes;
    unsigned most_threads = 0, most_shared = 48 << 10;
    bool is_on_the_device = false;
};

std::deque<Kernel> kernels;
thread_local void* current = nullptr;

std::FILE* log() {
    static const char* name = std::getenv("DRIVER_LOG");
    static std::FILE* file = std::fopen(name ? name : "/dev/null", "w");
    return file;
}

int init(unsigned) {
    return kSuccess;
}

int driver_version(int* version) {
    *version = 13000;
    return kSuccess;
}

int get_current(void** context) {
    *context = current;
    return kSuccess;
}

int retain(void** context, int device) {
    std::fprintf(log(), "context of %d\n", device);
    *context = reinterpret_cast<void*>(0x55);
    return kSuccess;
}

int set_current(void* context) {
    current = context;
    return kSuccess;
}

int load(void** library, const void* code, void*, void*, unsigned, void*, void*, unsigned) {
    *library = const_cast<void*>(code);
    return std::memcmp(code,
                       "\x7f"
                       "ELF",
                       4) == 0
               ? kSuccess
               : kInvalidValue;
}

template <class T>
T at(const char* place) {
    T value;
    std::memcpy(&value, place, sizeof(value));
    return value;
}

// The section `name` of a 64-bit ELF; empty where there is none.
std::string section(const char* code, const std::string& name) {
    const char* sections = code + at<std::uint64_t>(code + 0x28);
    const unsigned size = at<std::uint16_t>(code + 0x3a), count = at<std::uint16_t>(code + 0x3c);
    const char* of_names = sections + size * at<std::uint16_t>(code + 0x3e);
    const char* names = code + at<std::uint64_t>(of_names + 0x18);
    for (unsigned i = 0; i < count; ++i) {
        const char* one = sections + size * i;
        if (name == names + at<std::uint32_t>(one))
            return {code + at<std::uint64_t>(one + 0x18), at<std::uint64_t>(one + 0x20)};
    }
    return {};
}

// Its facts are pairs of a format and an attribute, then a value of two bytes, or with format 4 a
// length and so many bytes.
void read_facts(const std::string& facts, Kernel& kernel) {
    constexpr unsigned kHasLength = 4, kLargestBlock = 0x05, kParameter = 0x17;
    for (std::size_t i = 0; i + 4 <= facts.size();) {
        const char* fact = facts.data() + i;
        const unsigned format = at<std::uint8_t>(fact), attribute = at<std::uint8_t>(fact + 1);
        i += 4 + (format == kHasLength ? at<std::uint16_t>(fact + 2) : 0);
        if (attribute == kLargestBlock) kernel.most_threads = at<std::uint32_t>(fact + 4);
        if (attribute != kParameter) continue;
        const unsigned number = at<std::uint16_t>(fact + 8);
        if (kernel.sizes.size() <= number) kernel.sizes.resize(number + 1);
        kernel.sizes[number] = at<std::uint32_t>(fact + 12) >> 18;
    }
}

// "void name<...>(int, float const*)" -> {"int", "float const*"}
std::vector<std::string> types_of(const std::string& mangled) {
    char* text = abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, nullptr);
    std::string all = text ? text : "";
    std::free(text);
    all = all.substr(all.find(">(") + 2);
    std::vector<std::string> types;
    for (std::size_t end; (end = all.find_first_of(",)")) != std::string::npos;) {
        types.push_back(all.substr(0, end));
        all = all.substr(std::min(all.size(), end + 2));
    }
    return types;
}

int get_kernel(void** kernel, const char* library, const char* name) {
    const std::string facts = section(library, std::string(".nv.info.") + name);
    if (facts.empty()) return kNotFound;
    Kernel found;
    found.name = name;
    found.types = types_of(name);
    read_facts(facts, found);
    if (found.sizes.size() != found.types.size()) return kNotFound;
    kernels.push_back(found);
    *kernel = &kernels.back();
    std::fprintf(log(), "kernel %s\n", name);
    return kSuccess;
}

int get_function(void** function, void* kernel) {
    *function = kernel;
    return current ? kSuccess : kInvalidContext;
}

int load_function(Kernel* kernel) {
    kernel->is_on_the_device = true;
    return kSuccess;
}

int set_attribute(Kernel* kernel, int attribute, int value) {
    constexpr int kMostShared = 8, kMostOfABlock = 227 << 10;
    if (attribute != kMostShared || value > kMostOfABlock) return kInvalidValue;
    kernel->most_shared = static_cast<unsigned>(value);
    return kSuccess;
}

// Words, Floats and Jobs are of 16 bytes, and so are reads of bytes.
bool is_aligned(const std::string& type, const unsigned char* bytes) {
    const bool is_wide = type[0] == 'W' || type[0] == 'F' || type[0] == 'J' ||
                         type.find("signed char") != std::string::npos;
    return !is_wide || at<std::uint64_t>(reinterpret_cast<const char*>(bytes)) % 16 == 0;
}

// As cuda.h has them. An attribute's value is a union of 64 bytes.
struct Attribute {
    int id, padding, value, others[15];
};
struct Launch {
    unsigned grid[3], block[3], shared;
    void* stream;
    const Attribute* attributes;
    unsigned n_attributes;
};

int launch_as(const Launch& how, const Kernel* kernel, void** arguments, void** extra) {
    constexpr int kMayStartEarly = 6;
    const auto [x, y, z] = how.grid;
    if (!current) return kInvalidContext;
    if (!kernel->is_on_the_device) return kNotFound;
    const unsigned threads = how.block[0] * how.block[1] * how.block[2];
    for (unsigned i = 0; i < how.n_attributes; ++i)
        if (how.attributes[i].id != kMayStartEarly) return kInvalidValue;
    const bool early = how.n_attributes > 0 && how.attributes[0].value;
    if (x * y * z == 0 || y > 65535 || z > 65535 || threads != kernel->most_threads || extra)
        return kInvalidValue;
    if (how.shared > kernel->most_shared) return kInvalidValue;
    static const bool is_logged = std::getenv("DRIVER_LOG");
    if (!is_logged) return kSuccess;  // texts take longer than a launch
    std::fprintf(log(), "launch %s grid %u %u %u block %u %u %u shared %u stream %p%s\n",
                 kernel->name.c_str(), x, y, z, how.block[0], how.block[1], how.block[2],
                 how.shared, how.stream, early ? " early" : "");
    for (std::size_t i = 0; i < kernel->sizes.size(); ++i) {
        const auto* bytes = static_cast<const unsigned char*>(arguments[i]);
        const std::string& type = kernel->types[i];
        if (!is_aligned(type, bytes)) return kMisalignedAddress;
        std::fprintf(log(), "%s ", type.back() == '*' ? "pointer" : type.c_str());
        for (unsigned k = 0; k < kernel->sizes[i]; ++k) std::fprintf(log(), "%02x", bytes[k]);
        std::fprintf(log(), "\n");
    }
    std::fflush(log());
    return kSuccess;
}

int launch(const Kernel* kernel, unsigned x, unsigned y, unsigned z, unsigned block_x,
           unsigned block_y, unsigned block_z, unsigned shared, void* stream, void** arguments,
           void** extra) {
    return launch_as({{x, y, z}, {block_x, block_y, block_z}, shared, stream, nullptr, 0}, kernel,
                     arguments, extra);
}

int launch_ex(const Launch* how, const Kernel* kernel, void** arguments, void** extra) {
    return launch_as(*how, kernel, arguments, extra);
}

// Which capture of a CUDA graph a stream is in: the third.
int capture_info(void*, int* status, unsigned long long* number, ...) {
    *status = 1;
    *number = 3;
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
        {"cuKernelGetFunction", reinterpret_cast<void*>(get_function)},
        {"cuFuncLoad", reinterpret_cast<void*>(load_function)},
        {"cuFuncSetAttribute", reinterpret_cast<void*>(set_attribute)},
        {"cuStreamGetCaptureInfo", reinterpret_cast<void*>(capture_info)},
        {"cuLaunchKernel", reinterpret_cast<void*>(launch)},
        {"cuLaunchKernelEx", reinterpret_cast<void*>(launch_ex)},
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
