#include "runtime/region.h"

#include <torch/csrc/autograd/python_variable.h>

#include "core/error.h"

namespace ie::runtime {
namespace {

// Owns one reference. Only while the GIL is held.
class Object {
  public:
    explicit Object(PyObject* object) : object_(object) {}
    ~Object() { Py_XDECREF(object_); }
    Object(const Object&) = delete;
    Object& operator=(const Object&) = delete;
    PyObject* get() const { return object_; }

  private:
    PyObject* object_;
};

class Gil {
  public:
    Gil() : state_(PyGILState_Ensure()) {}
    ~Gil() { PyGILState_Release(state_); }
    Gil(const Gil&) = delete;
    Gil& operator=(const Gil&) = delete;

  private:
    PyGILState_STATE state_;
};

[[noreturn]] void throw_raised() {
    python_error error;
    PyErr_Fetch(&error.type, &error.value, &error.traceback);
    PyErr_NormalizeException(&error.type, &error.value, &error.traceback);  // C code raises in halves
    error.build_message();
    throw error;
}

std::vector<at::Tensor> tensors_of(PyObject* result, std::size_t expected) {
    IE_CHECK(PyTuple_Check(result), "the region returned a ", Py_TYPE(result)->tp_name,
             " instead of a tuple");
    const auto found = static_cast<std::size_t>(PyTuple_GET_SIZE(result));
    IE_CHECK(found == expected, "the region returned ", found, " values instead of ", expected);
    std::vector<at::Tensor> tensors;
    for (std::size_t i = 0; i < found; ++i) {
        PyObject* item = PyTuple_GET_ITEM(result, i);
        IE_CHECK(THPVariable_Check(item), "the region returned a ", Py_TYPE(item)->tp_name, " as value ", i,
                 " instead of a tensor");
        tensors.push_back(THPVariable_Unpack(item));
    }
    return tensors;
}

}  // namespace

std::vector<at::Tensor> Region::operator()(const std::vector<at::Tensor>& inputs,
                                           std::size_t num_outputs) const {
    const Gil gil;
    const Object arguments(PyTuple_New(std::ssize(inputs)));
    for (std::size_t i = 0; i < inputs.size(); ++i) {
        PyTuple_SET_ITEM(arguments.get(), i, THPVariable_Wrap(inputs[i]));
    }
    const Object result(PyObject_CallObject(reinterpret_cast<PyObject*>(id_), arguments.get()));
    if (!result.get()) throw_raised();
    return tensors_of(result.get(), num_outputs);
}

void add_note(const python_error& error, const std::string& note) {
    const Gil gil;
    const Object done(PyObject_CallMethod(error.value, "add_note", "s", note.c_str()));
    if (!done.get()) PyErr_Clear();  // an exception that refuses notes is still the one to raise
}

}  // namespace ie::runtime
