using static TorchSharp.torch;

namespace Megatron.Compute.Native;

/// <summary>What the cuDNN forward leaves for its backward beside inputs and output. The random state is absent without dropout.</summary>
public readonly record struct CudnnAttentionState(Tensor LogSumExp, Tensor? PhiloxSeed, Tensor? PhiloxOffset);

/// <summary>Which keys the queries of a packed row meet: segment i of the queries all of segment i of the keys, or causally.</summary>
/// <param name="CuSeqLensQuery">[segments + 1] int32 on the device.</param>
/// <param name="CuSeqLensKey">[segments + 1] int32 on the device.</param>
/// <param name="MaxSeqLenQuery">Longest segment of queries.</param>
/// <param name="MaxSeqLenKey">Longest segment of keys.</param>
/// <param name="IsCausal">Needs segments of equal length on both sides.</param>
public readonly record struct FlashSegments(Tensor CuSeqLensQuery, Tensor CuSeqLensKey, long MaxSeqLenQuery, long MaxSeqLenKey, bool IsCausal);

/// <summary>
/// Attention kernels on NVIDIA GPUs: cuDNN for equally long rows, flash-attention-2 (arXiv 2307.08691) with segment borders for packed rows.
/// bf16 and fp16; grouped heads are not expanded; no dropout.
/// </summary>
public static unsafe class CudaAttention
{
    /// <summary>cuDNN: softmax(scale · q kᵀ + causal mask) v.</summary>
    /// <param name="q_BHSD">[B, H, S, D]; strided is fine while the last dimension is contiguous.</param>
    /// <param name="k_BGSD">[B, G, S, D], G divides H.</param>
    /// <param name="v_BGSD">[B, G, S, D].</param>
    /// <returns>Output [B, H, S, D] in q's stride order, and the state.</returns>
    public static (Tensor Output, CudnnAttentionState State) CudnnForward(Tensor q_BHSD, Tensor k_BGSD, Tensor v_BGSD, double scale)
    {
        nint output, logSumExp, cumSeqQ, cumSeqK, seed, offset, debugMask;
        long maxQ, maxK;
        StableAbi.Check(
            LibTorch.CudaAbi.CudnnAttentionForward(
                q_BHSD.Handle, k_BGSD.Handle, v_BGSD.Handle, null, 1, 0.0, 1, 0, &scale, &output, &logSumExp, &cumSeqQ, &cumSeqK, &maxQ, &maxK, &seed, &offset, &debugMask),
            "aoti_torch_cuda__scaled_dot_product_cudnn_attention");
        foreach (var unused in (ReadOnlySpan<nint>)[cumSeqQ, cumSeqK, debugMask]) Delete(unused);
        return (Tensor.UnsafeCreateTensor(output), new CudnnAttentionState(Tensor.UnsafeCreateTensor(logSumExp), WrapIfDefined(seed), WrapIfDefined(offset)));
    }

    /// <summary>Gradients of <see cref="CudnnForward"/>.</summary>
    /// <param name="gradOutput_BHSD">Like the output.</param>
    public static (Tensor GradQ, Tensor GradK, Tensor GradV) CudnnBackward(
        Tensor gradOutput_BHSD, Tensor q_BHSD, Tensor k_BGSD, Tensor v_BGSD, Tensor output_BHSD, CudnnAttentionState state, double scale)
    {
        nint gradQ, gradK, gradV, absent;
        StableAbi.Check(LibTorch.Abi.NewUninitializedTensor(&absent), "aoti_torch_new_uninitialized_tensor");
        try
        {
            StableAbi.Check(
                LibTorch.CudaAbi.CudnnAttentionBackward(
                    gradOutput_BHSD.Handle, q_BHSD.Handle, k_BGSD.Handle, v_BGSD.Handle, output_BHSD.Handle, state.LogSumExp.Handle,
                    state.PhiloxSeed?.Handle ?? absent, state.PhiloxOffset?.Handle ?? absent, absent, absent, absent,
                    q_BHSD.shape[2], k_BGSD.shape[2], 0.0, 1, &scale, &gradQ, &gradK, &gradV),
                "aoti_torch_cuda__scaled_dot_product_cudnn_attention_backward");
        }
        finally
        {
            Delete(absent);
        }
        return (Tensor.UnsafeCreateTensor(gradQ), Tensor.UnsafeCreateTensor(gradK), Tensor.UnsafeCreateTensor(gradV));
    }

    /// <summary>Flash attention over a packed row: each segment of queries attends to the segment of keys with its number.</summary>
    /// <param name="q_THD">[T, H, D].</param>
    /// <param name="k_TGD">[T, G, D].</param>
    /// <param name="v_TGD">[T, G, D].</param>
    /// <param name="segments">Which queries meet which keys.</param>
    /// <returns>
    /// Output [T, H, D], log-sum-exp [H, T] in fp32, and the kernel's random state (an argument of the backward, which does not read it without dropout).
    /// </returns>
    public static (Tensor Output, Tensor LogSumExp, Tensor RandomState, Tensor Unused) FlashForward(
        Tensor q_THD, Tensor k_TGD, Tensor v_TGD, FlashSegments segments, double scale)
    {
        var results = Dispatcher.Call("aten::_flash_attention_forward", "", 5,
            q_THD, k_TGD, v_TGD, StableValue.Optional(segments.CuSeqLensQuery), StableValue.Optional(segments.CuSeqLensKey),
            segments.MaxSeqLenQuery, segments.MaxSeqLenKey, 0.0, segments.IsCausal, false,
            StableValue.Optional(scale), StableValue.Optional((long?)null), StableValue.Optional((long?)null), StableValue.Optional((Tensor?)null), StableValue.Optional((Tensor?)null));
        results[4].Dispose();
        return (results[0], results[1], results[2], results[3]);
    }

    /// <summary>Gradients of <see cref="FlashForward"/>.</summary>
    public static (Tensor GradQ, Tensor GradK, Tensor GradV) FlashBackward(
        Tensor gradOutput_THD, Tensor q_THD, Tensor k_TGD, Tensor v_TGD, Tensor output_THD, Tensor logSumExp, Tensor randomState, Tensor unused,
        FlashSegments segments, double scale)
    {
        var results = Dispatcher.Call("aten::_flash_attention_backward", "", 3,
            gradOutput_THD, q_THD, k_TGD, v_TGD, output_THD, logSumExp, segments.CuSeqLensQuery, segments.CuSeqLensKey,
            segments.MaxSeqLenQuery, segments.MaxSeqLenKey, 0.0, segments.IsCausal, randomState, unused,
            StableValue.Optional(scale), StableValue.Optional((long?)null), StableValue.Optional((long?)null));
        return (results[0], results[1], results[2]);
    }

    private static Tensor? WrapIfDefined(nint handle)
    {
        byte isDefined;
        StableAbi.Check(LibTorch.Abi.IsDefined(handle, &isDefined), "aoti_torch_is_defined");
        if (isDefined != 0) return Tensor.UnsafeCreateTensor(handle);
        Delete(handle);
        return null;
    }

    private static void Delete(nint handle)
    {
        if (handle != 0) StableAbi.Check(LibTorch.Abi.DeleteTensorObject(handle), "aoti_torch_delete_tensor_object");
    }
}
