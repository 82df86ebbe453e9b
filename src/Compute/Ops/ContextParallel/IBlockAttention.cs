using static TorchSharp.torch;

namespace Megatron.Compute.Ops.ContextParallel;

/// <summary>
/// Attention of some queries to some of their keys, and the log-sum-exp of the scores, with which the results for other keys are merged.
/// Called inside a dispose scope of the caller.
/// </summary>
internal interface IBlockAttention
{
    /// <param name="inputs">Query [B, S, N, D], key and value [B, K, G, D].</param>
    /// <returns>Output [B, S, N, D] and log-sum-exp [B, S, N] over these keys.</returns>
    (Tensor Output, Tensor LogSumExp) Forward(RingBlock block, AttentionInputs inputs, ForwardContext context);

    /// <summary>The block's share of the gradients.</summary>
    /// <param name="result">Gradient of the output, output and log-sum-exp over all keys.</param>
    AttentionGradients Backward(RingBlock block, AttentionInputs inputs, AttentionResult result, ForwardContext context);
}

/// <summary>What the backward of attention needs beside its inputs.</summary>
/// <param name="GradOutput">[…, N, D].</param>
/// <param name="Output">[…, N, D] over all keys.</param>
/// <param name="LogSumExp">[…, N] over all keys.</param>
internal readonly record struct AttentionResult(Tensor GradOutput, Tensor Output, Tensor LogSumExp);
