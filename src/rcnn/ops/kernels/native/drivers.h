// What the bindings call: whole-batch operators on raw memory.
#pragma once
#include <vector>

#include "tables.h"

namespace rcnn {

const std::vector<Kernels>& supported();  // on this processor, widest instruction set first
const Kernels& kernels();                 // the chosen ones
bool choose(const char* name);            // false if the processor lacks them

struct RoiProblem {
  int64_t images, rois_per_image;
  FeatureShape shape;
  const float* boxes;  // (images, rois_per_image, 4)
  int size;
  float spatial_scale;
  int sampling_ratio;  // 0 = adaptive
  bool aligned;
  int threads;
};

template <typename T>
void roi_align(const RoiProblem&, const T* features, T* out);
template <typename T>
void roi_align_backward(const RoiProblem&, const T* grad_out, T* grad_features);
template <typename T>
void roi_pool(const RoiProblem&, const T* features, T* out, Argmax);
template <typename T>
void roi_pool_backward(const RoiProblem&, const T* grad_out, Argmax, T* grad_features);

struct NmsProblem {
  int64_t images, boxes_per_image, most;
  const float* boxes;
  const float* scores;
  const bool* valid;
  float threshold, offset;
  int threads;
};

void nms(const NmsProblem&, int64_t* index, bool* keep_valid);

void winograd(const WinogradLayer&, int threads);

bool has_amx();  // whether this processor has it and the system lets this process use it
extern const LinearKernel linear_amx;
void linear(const LinearLayer&, int threads);  // only where there is AMX
extern const WeightGradientKernel weight_gradient_amx;
void weight_gradient(const ConvGradient&, int threads);  // likewise
extern const ConvolutionKernel convolution_amx;
extern const PackConvolution pack_convolution_amx;
void convolution(const Convolution&, int threads);              // likewise
void pack_convolution(const ConvolutionWeights&, int threads);  // likewise

}  // namespace rcnn
