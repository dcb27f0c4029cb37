# Read by CMake at the end of llama.cpp's own project() call: it is passed as
# CMAKE_PROJECT_llama.cpp_INCLUDE, so the released sources stay as they are.

if (EDGEKIT_LIBRARIES_ONLY)
    # llama-cpp-python turns llama-common on and then loads nothing of it: a third of the compile time.
    # A plain variable wins over the cache entry (policy CMP0077).
    set(LLAMA_BUILD_COMMON OFF)
endif()

add_compile_options("$<$<COMPILE_LANGUAGE:CXX>:SHELL:-include ${CMAKE_CURRENT_LIST_DIR}/amx_tile_config.h>")
