using Megatron.Compute.Native;
using static TorchSharp.torch;

namespace Megatron.Compute.Ops;

/// <summary><see cref="SwiGlu"/> on a GPU: one pass over the data each way.</summary>
internal static class SwiGluKernel
{
    private const string File = "swiglu.cu";
    private const int BlockThreads = 256;

    /// <summary>True when the kernels compute tensors like <paramref name="gateUp_T2F"/>.</summary>
    public static bool Supports(Tensor gateUp_T2F) =>
        KernelElement.Supports(gateUp_T2F) && gateUp_T2F.shape.Length == 2 && gateUp_T2F.is_contiguous()
        && gateUp_T2F.shape[1] % (2 * KernelElement.VectorLength(gateUp_T2F)) == 0 && KernelElement.IsAligned(gateUp_T2F);

    /// <summary>See <see cref="SwiGlu.Forward"/>.</summary>
    public static Tensor Forward(Tensor gateUp_T2F)
    {
        var (rows, width) = (gateUp_T2F.shape[0], gateUp_T2F.shape[1] / 2);
        var output = empty([rows, width], gateUp_T2F.dtype, gateUp_T2F.device);
        CudaKernels.Of(File, KernelElement.Define(gateUp_T2F)).Launch(
            "swiglu_forward", Blocks(output), 1, BlockThreads, 0, Dispatcher.DataPointer(gateUp_T2F), Dispatcher.DataPointer(output), rows, width);
        return output;
    }

    /// <summary>See <see cref="SwiGlu.Backward"/>.</summary>
    public static Tensor Backward(Tensor gradOutput_TF, Tensor gateUp_T2F)
    {
        var gradInput = empty(gateUp_T2F.shape, gateUp_T2F.dtype, gateUp_T2F.device);
        CudaKernels.Of(File, KernelElement.Define(gateUp_T2F)).Launch(
            "swiglu_backward", Blocks(gradOutput_TF), 1, BlockThreads, 0,
            Dispatcher.DataPointer(gradOutput_TF), Dispatcher.DataPointer(gateUp_T2F), Dispatcher.DataPointer(gradInput), gradOutput_TF.shape[0], gradOutput_TF.shape[1]);
        return gradInput;
    }

    private static uint Blocks(Tensor output)
    {
        long perBlock = BlockThreads * KernelElement.VectorLength(output);
        return (uint)((output.numel() + perBlock - 1) / perBlock);
    }
}
