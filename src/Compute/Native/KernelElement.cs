using TorchSharp;
using static TorchSharp.torch;

namespace Megatron.Compute.Native;

/// <summary>Which build of a kernel file computes a tensor: the <c>ELEMENT</c> of <c>Kernels/common.cuh</c>.</summary>
public static class KernelElement
{
    /// <summary>True for tensors on a GPU in a dtype that the kernels know.</summary>
    public static bool Supports(Tensor x) =>
        x.device_type == DeviceType.CUDA && x.dtype is ScalarType.BFloat16 or ScalarType.Float16 or ScalarType.Float32;

    /// <summary>Elements that are loaded at once: 16 bytes.</summary>
    public static int VectorLength(Tensor x) => x.dtype == ScalarType.Float32 ? 4 : 8;

    /// <summary>The definition that selects the dtype.</summary>
    public static string Define(Tensor x) => Define(x.dtype);

    /// <inheritdoc cref="Define(Tensor)"/>
    public static string Define(ScalarType dtype) => dtype switch
    {
        ScalarType.BFloat16 => "ELEMENT=0",
        ScalarType.Float16 => "ELEMENT=1",
        _ => "ELEMENT=2",
    };

    /// <summary>True when the first element lies at a multiple of 16 bytes, as vector loads need.</summary>
    public static bool IsAligned(Tensor x) => (Dispatcher.DataPointer(x) & 15) == 0;
}
