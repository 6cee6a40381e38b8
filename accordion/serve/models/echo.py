"""Triton model that returns its inputs: the known-tensor check made before anything else is loaded.

With numpy 2 in the stub's environment this server hands FP32 inputs over as zeros without an error, so a
server is trusted only after a known tensor came back as it was sent.
"""

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """FLOATS (FP32) and TEXT (BYTES) go in and come out unchanged."""

    def execute(self, requests):
        responses = []
        for request in requests:
            floats = pb_utils.get_input_tensor_by_name(request, "FLOATS").as_numpy()
            text = pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy()
            outputs = [pb_utils.Tensor("FLOATS_OUT", floats), pb_utils.Tensor("TEXT_OUT", text)]
            responses.append(pb_utils.InferenceResponse(output_tensors=outputs))
        return responses
