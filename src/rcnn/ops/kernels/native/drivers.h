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

void weight_gradient(const ConvGradient&, int threads);  // only where kernels() have one

}  // namespace rcnn
