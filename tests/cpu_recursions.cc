// Runs the kernels of lattices, with durations and without, bands and best paths on random problems
// in memory that ends where their arrays do. Built with -fsanitize=address,undefined: see
// test_cpu_kernels.py.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>

#include "banded_kernels.h"
#include "best_duration_path_kernel.h"
#include "best_path_kernels.h"
#include "duration_lattice.h"
#include "lattice_kernels.h"
#include "random_problems.h"

namespace jax_rnnt::JAX_RNNT_TARGET {
namespace {

template <class... Arrays>
std::string bytes_of(const Arrays&... arrays) {
  std::string bytes;
  (bytes.append(reinterpret_cast<const char*>(arrays.data()), arrays.size() * sizeof(arrays[0])),
   ...);
  return bytes;
}

// Results must not depend on what memory held before, nor on how threads share the work.
template <class Recursion>
void check_same(const Recursion& p, const std::string& wanted, const std::string& found) {
  if (found == wanted) return;
  long long kind = -1;  // with durations
  if constexpr (requires { p.topology; }) kind = (long long)p.topology;
  std::printf("%lld x %lld x %lld, topology %lld: two runs differ\n", (long long)p.batch,
              (long long)p.frames, (long long)p.cells, kind);
  std::exit(1);
}

double random_penalty() { return one_in(2) ? 0 : 0.02; }

// Elements of the planes and of all workspace.
struct Memory {
  int64_t plane, workspace;
  bool with_posteriors;
};

// The results of a lattice or a band, whose memory held `garbage` before.
template <class T, class Recursion, class Run>
std::string results(Recursion p, const Memory& memory, T garbage, Run run) {
  const int64_t plane = memory.with_posteriors ? memory.plane : 0;
  std::vector<T> log_likelihood(p.batch, garbage), workspace(memory.workspace, garbage);
  std::vector<T> blank_posteriors(plane, garbage), label_posteriors(plane, garbage);
  p.log_likelihood = log_likelihood.data();
  p.workspace = workspace.data();
  p.blank_posteriors = blank_posteriors.data(), p.label_posteriors = label_posteriors.data();
  run(p);
  return bytes_of(log_likelihood, blank_posteriors, label_posteriors);
}

// Each utterance by one thread.
template <class T>
void run_utterances(const Lattice& p) {
  for (int64_t b = 0; b < p.batch; ++b) lattice_utterance<T>(p, b);
}

// The steps that threads take when they share utterances, in an order that may come about.
template <class T>
void run_steps(const Lattice& p) {
  using Step = LatticeStep;
  for (const bool inward : {true, false}) {
    std::vector<std::pair<int64_t, Step>> steps;
    for (int64_t b = 0; b < p.batch; ++b) {
      steps.emplace_back(b, inward ? Step::kFirstInward : Step::kFirstOutward);
      steps.emplace_back(b, inward ? Step::kSecondInward : Step::kSecondOutward);
    }
    std::shuffle(steps.begin(), steps.end(), engine);
    for (const auto& [b, step] : steps) step_of_utterance<T>(p, b, step);
  }
}

template <class T>
void check_lattice(const Lattice& p, const Memory& memory) {
  check_same(p, results<T>(p, memory, T(NAN), run_utterances<T>),
             results<T>(p, memory, T(7), run_steps<T>));
}

template <class T>
void run_dense_lattice(Topology topology) {
  Lattice p{};
  p.batch = 1 + up_to(2), p.frames = up_to(70), p.cells = 1 + up_to(50);
  p.topology = topology, p.final_blank = one_in(2), p.delay_penalty = random_penalty();
  const int64_t plane = p.batch * p.frames * p.cells;
  const auto blank = random_scores<T>(plane), label = random_scores<T>(plane);
  const auto bounds = random_bounds(p.batch, p.frames, p.cells - 1);
  p.blank = blank.data(), p.label = label.data(), p.bounds = bounds.data();
  const bool with_posteriors = one_in(2);
  p.workspace_elements = lattice_workspace_elements(p.frames, p.cells, topology, with_posteriors);
  check_lattice<T>(p, {plane, p.batch * p.workspace_elements, with_posteriors});
}

// Utterances in packed rows, for some of which there may not be enough.
struct Packing {
  static constexpr int64_t kMostFrames = 60;
  int64_t planes = 1 + up_to(1), utterances = 1 + up_to(3), cells = 1 + up_to(40), rows = 0;
  std::vector<Bounds> bounds;
  std::vector<int32_t> offsets;

  Packing() {
    bounds = random_bounds(planes * utterances, kMostFrames, cells - 1);
    for (int64_t plane = 0; plane < planes; ++plane) rows = std::max(rows, rows_of(plane));
    if (one_in(4)) rows = up_to(rows + 9);
    for (int32_t& offset : offsets) offset = int32_t(std::min<int64_t>(offset, rows));
  }

  PackedRows packed() const {
    return {.used = true,
            .planes = planes,
            .rows = rows,
            .utterances = utterances,
            .offsets = offsets.data(),
            .per_row = 0,
            .per_utterance = 0};
  }

 private:
  int64_t rows_of(int64_t plane) {
    int64_t end = 0;
    for (int64_t i = 0; i < utterances; ++i) {
      const Bounds& of = bounds[plane * utterances + i];
      offsets.push_back(int32_t(end));
      // Without a plane of its own, an utterance may well have a frame more.
      if (of.valid(kMostFrames + 1, cells - 1)) end += int64_t(of.frame_end) * (of.label_end + 1);
    }
    return end;
  }
};

template <class T>
void run_packed_lattice(Topology topology) {
  const Packing packing;
  Lattice p{};
  p.batch = packing.planes * packing.utterances, p.frames = packing.rows, p.cells = packing.cells;
  p.packed = packing.packed();
  p.topology = topology, p.final_blank = one_in(2), p.delay_penalty = random_penalty();
  const int64_t plane = packing.planes * packing.rows;
  const auto blank = random_scores<T>(plane), label = random_scores<T>(plane);
  p.blank = blank.data(), p.label = label.data(), p.bounds = packing.bounds.data();
  const bool with_posteriors = one_in(2);
  const PackedWorkspace needed = packed_workspace(p.cells, with_posteriors);
  p.packed.per_row = needed.per_row, p.packed.per_utterance = needed.per_utterance;
  p.workspace_elements = needed.per_row * packing.rows + needed.per_utterance * packing.utterances;
  const Memory memory{plane, packing.planes * p.workspace_elements, with_posteriors};
  check_lattice<T>(p, memory);

  // Rows that several utterances have: what is in them depends on the order of the steps.
  auto offsets = packing.offsets;
  for (int32_t& offset : offsets) offset = int32_t(up_to(packing.rows + 20)) - 10;
  p.packed.offsets = offsets.data();
  results<T>(p, memory, T(NAN), run_steps<T>);
}

template <class T>
std::string results_with_durations(DurationLattice p, int64_t plane, bool with_posteriors,
                                   T garbage) {
  std::vector<T> log_likelihood(p.batch, garbage), blank(plane, garbage), label(plane, garbage);
  std::vector<T> duration(p.durations.number * plane, garbage);
  std::vector<T> workspace(p.batch * p.workspace_elements, garbage);
  p.log_likelihood = log_likelihood.data(), p.workspace = workspace.data();
  if (with_posteriors) {
    p.blank_posteriors = blank.data(), p.label_posteriors = label.data();
    p.duration_posteriors = duration.data();
  }
  for (int64_t b = 0; b < p.batch; ++b) duration_lattice_utterance<T>(p, b);
  return with_posteriors ? bytes_of(log_likelihood, blank, label, duration)
                         : bytes_of(log_likelihood);
}

template <class T>
std::string best_paths_with_durations(BestDurationPath p, int64_t plane, T garbage) {
  DurationLattice& lattice = p.lattice;
  std::vector<T> score(lattice.batch, garbage), workspace(plane, garbage);
  std::vector<uint8_t> arrivals(plane, std::isnan(garbage) ? 255 : 7);
  const int32_t none = std::isnan(garbage) ? -7 : 7;
  std::vector<int32_t> label_frames(lattice.batch * (lattice.cells - 1), none);
  std::vector<int32_t> label_durations = label_frames;
  lattice.log_likelihood = score.data(), lattice.workspace = workspace.data();
  p.arrivals = arrivals.data();
  p.label_frames = label_frames.data(), p.label_durations = label_durations.data();
  for (int64_t b = 0; b < lattice.batch; ++b) best_duration_path_utterance<T>(p, b);
  return bytes_of(score, label_frames, label_durations);
}

template <class T>
void run_durations() {
  DurationLattice p{};
  p.batch = 1 + up_to(2), p.frames = up_to(40), p.cells = 1 + up_to(50);
  const uint64_t longest = one_in(4) ? up_to(60) : up_to(4);
  p.durations = Durations::of_bits(uint64_t(2) << longest | uint64_t(up_to(15)));
  const int64_t plane = p.batch * p.frames * p.cells;
  const auto blank = random_scores<T>(plane), label = random_scores<T>(plane);
  const auto duration = random_scores<T>(p.durations.number * plane);
  const auto bounds = random_bounds(p.batch, p.frames, p.cells - 1);
  p.blank = blank.data(), p.label = label.data(), p.duration = duration.data();
  p.bounds = bounds.data();
  p.workspace_elements = duration_workspace_elements(p.frames, p.cells, p.durations);
  const bool with_posteriors = plane > 0 && one_in(2);
  check_same(p, results_with_durations<T>(p, plane, with_posteriors, T(NAN)),
             results_with_durations<T>(p, plane, with_posteriors, T(7)));
  const BestDurationPath best{.lattice = p};
  check_same(p, best_paths_with_durations<T>(best, plane, T(NAN)),
             best_paths_with_durations<T>(best, plane, T(7)));
}

// Those of bands that go with an utterance's labels, or anywhere.
std::vector<int32_t> random_starts(const std::vector<Bounds>& bounds, int64_t frames,
                                   int64_t cells) {
  std::vector<int32_t> starts;
  for (const Bounds& of : bounds) {
    const bool anywhere = one_in(6);
    const int64_t labels = int64_t(of.label_end) - of.label_begin;
    const int64_t last = std::max<int64_t>(int64_t(of.frame_end) - of.frame_begin - 1, 1);
    for (int64_t t = 0; t < frames; ++t) {
      const int64_t n = std::clamp<int64_t>(t - of.frame_begin, 0, last);
      const int64_t low = of.label_begin + labels * n / last - up_to(cells - 1);
      starts.push_back(anywhere ? int32_t(engine()) : int32_t(low));
    }
  }
  return starts;
}

// A band and its arrays.
template <class T>
struct Band {
  BandedLattice p{};
  std::vector<T> blank, label;
  std::vector<Bounds> bounds;
  std::vector<int32_t> starts;

  Band(Topology topology, int64_t batch, int64_t frames, int64_t cells, int64_t labels)
      : blank(random_scores<T>(batch * frames * cells)),
        label(random_scores<T>(batch * frames * cells)),
        bounds(random_bounds(batch, frames, labels)),
        starts(random_starts(bounds, frames, cells)) {
    p.batch = batch, p.frames = frames, p.cells = cells, p.labels = labels;
    p.topology = topology, p.delay_penalty = random_penalty();
    p.blank = blank.data(), p.label = label.data();
    p.starts = starts.data(), p.bounds = bounds.data();
  }
  Band(const Band&) = delete;
};

template <class T>
void run_groups(const BandedLattice& p) {
  for (int64_t b = 0; b < p.batch; b += kLanes<T>) banded_lattice_group<T>(p, b);
}

template <class T>
void run_band(Topology topology) {
  Band<T> band(topology, 1 + up_to(20), up_to(50), 1 + up_to(7), up_to(30));
  const bool with_posteriors = one_in(2);
  BandedLattice& p = band.p;
  p.workspace_elements = banded_workspace_elements(p.frames, p.cells, with_posteriors);
  const Memory memory{int64_t(band.blank.size()), p.batch * p.workspace_elements, with_posteriors};
  check_same(p, results<T>(p, memory, T(NAN), run_groups<T>),
             results<T>(p, memory, T(7), run_groups<T>));
}

template <class T>
std::string best_paths(BestPath p, int64_t workspace_elements, T garbage) {
  BandedLattice& band = p.band;
  std::vector<T> score(band.batch, garbage), workspace(workspace_elements, garbage);
  std::vector<int32_t> label_frames(band.batch * band.labels, std::isnan(garbage) ? -7 : 7);
  band.log_likelihood = score.data(), band.workspace = workspace.data();
  p.label_frames = label_frames.data();
  for (int64_t b = 0; b < band.batch; ++b) best_path_utterance<T>(p, b);
  return bytes_of(score, label_frames);
}

template <class T>
void check_best_path(const BestPath& p, int64_t workspace_elements) {
  check_same(p.band, best_paths<T>(p, workspace_elements, T(NAN)),
             best_paths<T>(p, workspace_elements, T(7)));
}

template <class T>
void run_best_path(Topology topology) {
  const int64_t labels = up_to(30), frames = up_to(40);
  const bool whole = one_in(2);
  Band<T> band(topology, 1 + up_to(3), frames, whole ? labels + 1 : 1 + up_to(7), labels);
  if (whole) std::fill(band.starts.begin(), band.starts.end(), 0);
  BandedLattice& p = band.p;
  p.workspace_elements = best_path_workspace_elements(p.frames, p.cells, sizeof(T));
  check_best_path<T>({p, PackedRows{}, one_in(2), nullptr}, p.batch * p.workspace_elements);
}

template <class T>
void run_packed_best_path(Topology topology) {
  const Packing packing;
  const int64_t plane = packing.planes * packing.rows;
  const auto blank = random_scores<T>(plane), label = random_scores<T>(plane);
  BestPath p{};
  p.band.batch = packing.planes * packing.utterances, p.band.frames = packing.rows;
  p.band.cells = packing.cells, p.band.labels = packing.cells - 1;
  p.band.topology = topology, p.band.delay_penalty = random_penalty();
  p.band.blank = blank.data(), p.band.label = label.data();
  p.band.bounds = packing.bounds.data();
  p.packed = packing.packed(), p.final_blank = one_in(2);
  p.packed.per_utterance = packed_best_path_elements(packing.cells);
  const int64_t of_rows = (packing.rows + sizeof(T) - 1) / sizeof(T);
  p.band.workspace_elements = p.packed.per_utterance * packing.utterances + of_rows;
  check_best_path<T>(p, packing.planes * p.band.workspace_elements);
}

template <class T>
void run() {
  for (int i = 0; i < 100; ++i) {
    for (const Topology topology :
         {Topology::kRegular, Topology::kModified, Topology::kConstrained}) {
      run_dense_lattice<T>(topology);
      run_packed_lattice<T>(topology);
      run_band<T>(topology);
      run_best_path<T>(topology);
      run_packed_best_path<T>(topology);
      run_durations<T>();
    }
  }
}

}  // namespace
}  // namespace jax_rnnt::JAX_RNNT_TARGET

int main() {
  using namespace jax_rnnt::JAX_RNNT_TARGET;
  run<float>();
  run<double>();
}
