"""Build of the native libraries: setuptools asks, CMake and Ninja do it. All other metadata is in pyproject.toml.

torch is not a build requirement: the libraries are compiled for the torch that the user has. Inside pip's build
isolation it can't be imported, but `sysconfig` still names the user's environment. IE_TORCH_DIR overrides the search.
"""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import cmake
import ninja
import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
SOURCES = [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("csrc/**/*.*"))]


class CMakeBuild(build_ext):
    """Builds the CMake targets named like the extensions, into the folder where setuptools looks for them."""

    def build_extensions(self) -> None:
        self.cmake("-S", str(ROOT), "-B", self.build_temp, "-G", "Ninja", *self.definitions())
        self.cmake("--build", self.build_temp, "--target", *(ext.name.rpartition(".")[2] for ext in self.extensions))

    def definitions(self) -> list[str]:
        output = Path(self.get_ext_fullpath(self.extensions[0].name)).resolve().parent
        torch = os.environ.get("IE_TORCH_DIR") or str(Path(sysconfig.get_path("platlib")) / "torch")
        values = {
            "CMAKE_BUILD_TYPE": "Debug" if self.debug else "Release",
            "CMAKE_LIBRARY_OUTPUT_DIRECTORY": output,
            "CMAKE_MAKE_PROGRAM": Path(ninja.BIN_DIR) / "ninja",
            "IE_TORCH_DIR": torch,
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
        }
        return [f"-D{name}={value}" for name, value in values.items()]

    def cmake(self, *arguments: str) -> None:
        try:
            subprocess.run([Path(cmake.CMAKE_BIN_DIR) / "cmake", *arguments], check=True)
        except subprocess.CalledProcessError:
            sys.exit("CMake could not build internevo_engine's native libraries; its messages are above")


setup(
    # Sources are listed for the source distribution; which file belongs to which library is CMake's knowledge.
    ext_modules=[
        Extension(f"internevo_engine.{name}", sources=[], depends=["CMakeLists.txt", *SOURCES])
        for name in ("_core", "_ops", "_runtime")
    ],
    cmdclass={"build_ext": CMakeBuild},
)
