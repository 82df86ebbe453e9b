using Megatron.Compute.Native;
using static TorchSharp.torch;

namespace Megatron.Compute.Ops;

/// <summary><see cref="SwiGlu"/> and <see cref="WeightedSwiGlu"/> on a GPU: one pass over the data each way.</summary>
internal static class SwiGluKernel
{
    private const string File = "swiglu.cu";
    private const int BlockThreads = 256, WarpThreads = 32;

    /// <summary>True when the kernels compute tensors like <paramref name="gateUp_T2F"/>.</summary>
    public static bool Supports(Tensor gateUp_T2F) =>
        KernelElement.Supports(gateUp_T2F) && gateUp_T2F.shape.Length == 2 && gateUp_T2F.is_contiguous()
        && gateUp_T2F.shape[1] % (2 * KernelElement.VectorLength(gateUp_T2F)) == 0 && KernelElement.IsAligned(gateUp_T2F);

    /// <summary>The same with a weight for each row.</summary>
    public static bool Supports(Tensor gateUp_R2F, Tensor weights_R) =>
        Supports(gateUp_R2F) && weights_R.dtype == ScalarType.Float32 && weights_R.is_contiguous() && gateUp_R2F.shape[0] > 0;

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
    public static (Tensor GradGateUp_T2F, Tensor Output_TF) Backward(Tensor gradOutput_TF, Tensor gateUp_T2F)
    {
        var (gradInput, output) = (empty_like(gateUp_T2F), empty_like(gradOutput_TF));
        CudaKernels.Of(File, KernelElement.Define(gateUp_T2F)).Launch(
            "swiglu_backward", Blocks(gradOutput_TF), 1, BlockThreads, 0,
            Dispatcher.DataPointer(gradOutput_TF), Dispatcher.DataPointer(gateUp_T2F), Dispatcher.DataPointer(gradInput), Dispatcher.DataPointer(output),
            gradOutput_TF.shape[0], gradOutput_TF.shape[1]);
        return (gradInput, output);
    }

    /// <summary>See <see cref="WeightedSwiGlu.Forward"/>.</summary>
    public static Tensor ForwardWeighted(Tensor gateUp_R2F, Tensor weights_R)
    {
        var (rows, width) = (gateUp_R2F.shape[0], gateUp_R2F.shape[1] / 2);
        var output = empty([rows, width], gateUp_R2F.dtype, gateUp_R2F.device);
        CudaKernels.Of(File, KernelElement.Define(gateUp_R2F)).Launch(
            "weighted_swiglu_forward", Blocks(output), 1, BlockThreads, 0,
            Dispatcher.DataPointer(gateUp_R2F), Dispatcher.DataPointer(weights_R), Dispatcher.DataPointer(output), rows, width);
        return output;
    }

    /// <summary>See <see cref="WeightedSwiGlu.Backward"/>.</summary>
    public static (Tensor GradGateUp_R2F, Tensor GradWeights_R, Tensor? Output_RF) BackwardWeighted(
        Tensor gradOutput_RF, Tensor gateUp_R2F, Tensor weights_R, bool wantsOutput)
    {
        const int rowsPerBlock = BlockThreads / WarpThreads;
        var (rows, width) = (gateUp_R2F.shape[0], gateUp_R2F.shape[1] / 2);
        var gradGateUp_R2F = empty(gateUp_R2F.shape, gateUp_R2F.dtype, gateUp_R2F.device);
        var gradWeights_R = empty([rows], ScalarType.Float32, gateUp_R2F.device);
        var output_RF = wantsOutput ? empty([rows, width], gateUp_R2F.dtype, gateUp_R2F.device) : null;
        CudaKernels.Of(File, KernelElement.Define(gateUp_R2F)).Launch(
            "weighted_swiglu_backward", (uint)((rows + rowsPerBlock - 1) / rowsPerBlock), 1, BlockThreads, 0,
            Dispatcher.DataPointer(gradOutput_RF), Dispatcher.DataPointer(gateUp_R2F), Dispatcher.DataPointer(weights_R), Dispatcher.DataPointer(gradGateUp_R2F),
            Dispatcher.DataPointer(gradWeights_R), output_RF is null ? 0 : Dispatcher.DataPointer(output_RF), rows, width);
        return (gradGateUp_R2F, gradWeights_R, output_RF);
    }

    private static uint Blocks(Tensor output)
    {
        long perBlock = BlockThreads * KernelElement.VectorLength(output);
        return (uint)((output.numel() + perBlock - 1) / perBlock);
    }
}
