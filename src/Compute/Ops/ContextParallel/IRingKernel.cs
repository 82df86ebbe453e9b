using static TorchSharp.torch;

namespace Megatron.Compute.Ops.ContextParallel;

/// <summary>
/// One step of the ring for a whole packed row: attention of this rank's queries to the keys of one rank. Called inside a dispose scope
/// of the caller.
/// </summary>
/// <remarks>Shape letters: T tokens of this rank, N query heads, G key/value heads, D channels.</remarks>
internal interface IRingKernel
{
    /// <summary>Merges the attention to these keys into the sums.</summary>
    /// <param name="inputs">This rank's query [T, N, D]; key and value [T, G, D] of <see cref="RingStep.Source"/>.</param>
    /// <param name="sums">Changed in place.</param>
    void Forward(RingStep step, AttentionInputs inputs, RingSums sums, ForwardContext context);

    /// <summary>Adds this step's shares to the gradients.</summary>
    /// <param name="result">[T, N, D], [T, N, D], [T, N].</param>
    /// <param name="gradients">Sums in fp32 or fp64: of the query on this rank, of the key and value of <see cref="RingStep.Source"/>.</param>
    void Backward(RingStep step, AttentionInputs inputs, AttentionResult result, AttentionGradients gradients, ForwardContext context);
}

/// <summary>A step of the ring.</summary>
/// <param name="Source">Rank whose keys and values these are.</param>
/// <param name="Part">What of the pair is computed.</param>
internal readonly record struct RingStep(int Source, RingPart Part)
{
    /// <summary>Step <paramref name="step"/> on <paramref name="rank"/>: blocks travel to the next rank, so that of the rank so many before it.</summary>
    public static RingStep Of(int step, int rank, int numRanks)
    {
        var source = (rank - step + numRanks) % numRanks;
        return new RingStep(source, source == rank ? RingPart.Own : source < rank ? RingPart.FirstKeys : RingPart.LastQueries);
    }
}

/// <summary>Attention over the keys seen so far: normalised output [T, N, D] and log-sum-exp [T, N], in fp32 or fp64.</summary>
internal readonly record struct RingSums(Tensor Output, Tensor LogSumExp)
{
    /// <summary>
    /// Merges the attention to further keys into rows of the sums: with l' = log(e^l + e^m) the output becomes o·e^(l − l') + p·e^(m − l'),
    /// which is o + (p − o)·sigmoid(m − l) (arXiv 2310.01889, section 3). The first block is the sum.
    /// </summary>
    /// <param name="output">[…, N, D], a view of the sums.</param>
    /// <param name="logSumExp">[…, N], likewise.</param>
    public static void Merge(Tensor output, Tensor logSumExp, Tensor blockOutput, Tensor blockLogSumExp, bool isFirst)
    {
        if (isFirst)
        {
            output.copy_(blockOutput);
            logSumExp.copy_(blockLogSumExp);
            return;
        }
        using var scope = NewDisposeScope();
        var weight = blockLogSumExp.sub(logSumExp).sigmoid_().unsqueeze(-1);
        output.addcmul_(blockOutput.sub(output), weight, value: 1);
        logSumExp.copy_(logSumExp.logaddexp(blockLogSumExp));
    }
}
