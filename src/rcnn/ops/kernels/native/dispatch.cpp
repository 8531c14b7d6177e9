// Knows which instruction sets this processor runs, and starts with the widest; asks for AMX.
#include <atomic>
#include <cstring>

#ifdef RCNN_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "drivers.h"

namespace rcnn {

#define RCNN_DECLARE(isa)                                                                  \
  namespace isa {                                                                          \
  extern const RoiKernels<float> roi_float;                                                \
  extern const RoiKernels<bfloat16> roi_bfloat16;                                          \
  extern const RoiPoolKernels<float> roi_pool_float;                                       \
  extern const RoiPoolKernels<bfloat16> roi_pool_bfloat16;                                 \
  extern const MaxPoolKernels<float> max_pool_float;                                       \
  extern const MaxPoolKernels<bfloat16> max_pool_bfloat16;                                 \
  extern int64_t (*const nms_kernel)(SortedBoxes, float, float, int64_t, int32_t*, void*); \
  extern const UpdateKernels update_kernels;                                               \
  extern const WinogradKernel winograd_kernel;                                             \
  }                                                                                        \
  static Kernels isa##_kernels() {                                                         \
    return {#isa,                                                                          \
            isa::roi_float,                                                                \
            isa::roi_bfloat16,                                                             \
            isa::roi_pool_float,                                                           \
            isa::roi_pool_bfloat16,                                                        \
            isa::max_pool_float,                                                           \
            isa::max_pool_bfloat16,                                                        \
            isa::nms_kernel,                                                               \
            isa::update_kernels,                                                           \
            isa::winograd_kernel};                                                         \
  }

RCNN_DECLARE(baseline)
#ifdef RCNN_X86
RCNN_DECLARE(avx2)
RCNN_DECLARE(avx512)
#endif

static std::vector<Kernels> find_supported() {
  std::vector<Kernels> found;
#ifdef RCNN_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("fma"))
    found.push_back(avx512_kernels());
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(avx2_kernels());
#endif
  found.push_back(baseline_kernels());
  return found;
}

const std::vector<Kernels>& supported() {
  static const std::vector<Kernels> all = find_supported();
  return all;
}

static std::atomic<const Kernels*> chosen{nullptr};

const Kernels& kernels() {
  const Kernels* now = chosen;
  return now ? *now : supported().front();
}

bool choose(const char* name) {
  for (const Kernels& one : supported())
    if (!std::strcmp(one.name, name)) {
      chosen = &one;
      return true;
    }
  return false;
}

#ifdef RCNN_AMX
// AMX-BF16, AVX512_BF16 and their state; Linux hands the latter out on request (arch/x86/xstate.rst of its documents).
static bool ask() {
  constexpr unsigned AMX_BF16 = 1u << 22, AMX_TILE = 1u << 24, AVX512_BF16 = 1u << 5;
  constexpr long REQUEST = 0x1023, TILE_DATA = 18;
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & (AMX_BF16 | AMX_TILE)) != (AMX_BF16 | AMX_TILE)) return false;
  if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a & AVX512_BF16)) return false;
  return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
}
#endif

bool has_amx() {
#ifdef RCNN_AMX
  static const bool has = ask();
  return has;
#else
  return false;
#endif
}

}  // namespace rcnn
