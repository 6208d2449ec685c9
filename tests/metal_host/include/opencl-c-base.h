// clang includes this name by itself when it compiles C++ for OpenCL.
