// Denormals are numbers here, whatever the calling thread has asked of its processor.
#pragma once

#if defined(__x86_64__)
#include <xmmintrin.h>
#else
#include <cstdint>
#endif

namespace {

// Libraries switch on flush-to-zero (torch.set_flush_denormal, -ffast-math start-up code) and never
// switch it off; the bytes we write must not depend on who else lives in the process.
class DefaultFloatEnvironment {
  public:
    DefaultFloatEnvironment() : saved_(get()) { set(kDefault); }
    ~DefaultFloatEnvironment() { set(saved_); }
    DefaultFloatEnvironment(const DefaultFloatEnvironment&) = delete;
    DefaultFloatEnvironment& operator=(const DefaultFloatEnvironment&) = delete;

  private:
#if defined(__x86_64__)
    using Control = unsigned;
    static constexpr Control kDefault = 0x1f80;  // round to nearest even, no trap, no flush
    static Control get() { return _mm_getcsr(); }
    static void set(Control value) { _mm_setcsr(value); }
#elif defined(__aarch64__)
    using Control = std::uint64_t;
    static constexpr Control kDefault = 0;
    static Control get() {
        Control value;
        __asm__ volatile("mrs %0, fpcr" : "=r"(value));
        return value;
    }
    static void set(Control value) { __asm__ volatile("msr fpcr, %0" : : "r"(value) : "memory"); }
#else
    using Control = int;
    static constexpr Control kDefault = 0;
    static Control get() { return 0; }
    static void set(Control) {}
#endif
    Control saved_;
};

}  // namespace
