// Logging from kernels: the host runner has none.
#pragma once
