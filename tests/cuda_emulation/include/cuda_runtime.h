// Stands in for CUDA's header of this name when device code is compiled by a C++ compiler and run
// on the CPU. ../README.md tells what is emulated and what is not.
#pragma once

#include <cassert>
#include <cstdio>

#include "emulation/collectives.h"
#include "emulation/host_api.h"
#include "emulation/math.h"
#include "emulation/memory.h"
#include "emulation/thread.h"
#include "emulation/vector_types.h"
// Last: its macros must not be seen by the standard library's headers.
#include "emulation/qualifiers.h"
