using Megatron.Compute.Ops;
using static TorchSharp.torch;

namespace Megatron.Compute.TensorParallel;

/// <summary>
/// The vocabulary projection and the loss, computed in chunks of tokens so that fp32 logits of one chunk exist at a time. The gradient
/// takes the place of the logits. If the gradients of all chunks fit into the budget they are kept in the model dtype from Forward on
/// and both backward halves are plain products; otherwise the logits are computed again in the backward, chunk by chunk, and both halves
/// happen in <see cref="BackwardInput"/>.
/// </summary>
/// <remarks>Shape letters: T tokens, t tokens outside the region, C tokens of a chunk, v = V / tp vocabulary of this rank, H hidden.</remarks>
public sealed class OutputHead
{
    private const int Hidden = 0;      // [T, H], gathered
    private const int LogitGrads = 0;  // child: one slot per chunk

    private readonly SequenceParallelRegion region;
    private readonly int chunkTokens;
    private readonly long keepBytes;

    /// <summary>This rank's rows [v, H]; the embedding's when they are tied.</summary>
    public Parameter Weight { get; }

    /// <param name="chunkTokens">Tokens per chunk.</param>
    /// <param name="keepBytes">Largest [T, v] gradient that is kept from forward to backward.</param>
    public OutputHead(Parameter weight_vH, SequenceParallelRegion region, int chunkTokens, long keepBytes) =>
        (Weight, this.region, this.chunkTokens, this.keepBytes) = (weight_vH, region, chunkTokens, keepBytes);

    /// <summary>Σ weight · cross-entropy of the micro-batch, unscaled; the loss factor of the context is in the gradient only.</summary>
    /// <param name="hidden_tH">[t, H]; kept in training.</param>
    /// <returns>fp32 scalar (fp64 for an fp64 model), the same on every rank of the group.</returns>
    public Tensor Forward(Tensor hidden_tH, Saved saved)
    {
        using var scope = NewDisposeScope();
        var hidden_TH = region.Gather(hidden_tH);
        var keepsGradients = saved.Context.IsTraining && hidden_TH.shape[0] * Weight.Shape[0] * hidden_TH.element_size() <= keepBytes;
        var total = zeros([], AccumulationDtype(hidden_TH), hidden_TH.device);
        for (var (start, index) = (0, 0); start < hidden_TH.shape[0]; start += chunkTokens, index++)
        {
            using var chunkScope = NewDisposeScope();
            var (loss, gradient) = Chunk(hidden_TH, start, saved.Context, keepsGradients);
            total.add_(loss);
            if (keepsGradients) saved.Child(LogitGrads).Keep(index, gradient);
        }
        if (saved.Context.IsTraining) saved.Keep(Hidden, hidden_TH);
        return total.MoveToOuterDisposeScope();
    }

    /// <summary>Gradient of (loss factor × loss) with respect to the hidden states, [t, H].</summary>
    public Tensor BackwardInput(Saved saved)
    {
        using var scope = NewDisposeScope();
        var hidden_TH = saved.Peek(Hidden);
        var isKept = saved.Child(LogitGrads).Has(0);
        if (isKept && hidden_TH.shape[0] <= chunkTokens)
            return region.Reduce(saved.Child(LogitGrads).Peek(0).mm(Weight.Data)).MoveToOuterDisposeScope();

        var gradHidden_TH = empty_like(hidden_TH);
        for (var (start, index) = (0, 0); start < hidden_TH.shape[0]; start += chunkTokens, index++)
        {
            using var chunkScope = NewDisposeScope();
            var gradLogits_Cv = isKept ? saved.Child(LogitGrads).Peek(index) : Chunk(hidden_TH, start, saved.Context, wantsGradient: true).Gradient;
            Rows(gradHidden_TH, start).copy_(gradLogits_Cv.mm(Weight.Data));
            if (!isKept) WeightGradient.Accumulate(Weight, gradLogits_Cv, Rows(hidden_TH, start));
        }
        if (!isKept) saved.Release(Hidden);
        return region.Reduce(gradHidden_TH).MoveToOuterDisposeScope();
    }

    /// <summary>Adds the weight gradient, unless <see cref="BackwardInput"/> had to do it.</summary>
    public void BackwardWeight(Saved saved)
    {
        if (!saved.Has(Hidden)) return;
        using var scope = NewDisposeScope();
        var hidden_TH = saved.Take(Hidden);
        for (var (start, index) = (0, 0); start < hidden_TH.shape[0]; start += chunkTokens, index++)
        {
            using var chunkScope = NewDisposeScope();
            WeightGradient.Accumulate(Weight, saved.Child(LogitGrads).Take(index), Rows(hidden_TH, start));
        }
    }

    /// <summary>All logits, [T, V] in the model dtype, on every rank: for inference and verification.</summary>
    public Tensor Logits(Tensor hidden_tH)
    {
        using var scope = NewDisposeScope();
        var logits_Tv = nn.functional.linear(region.Gather(hidden_tH), Weight.Data);
        var group = region.Group;
        if (group.Size == 1) return logits_Tv.MoveToOuterDisposeScope();
        var gathered = empty([group.Size, .. logits_Tv.shape], logits_Tv.dtype, logits_Tv.device);
        using (group.AllGather(gathered, logits_Tv)) { }
        return gathered.transpose(0, 1).reshape(logits_Tv.shape[0], -1).MoveToOuterDisposeScope();
    }

    private (Tensor Loss, Tensor Gradient) Chunk(Tensor hidden_TH, int start, ForwardContext context, bool wantsGradient)
    {
        var wide = AccumulationDtype(hidden_TH);
        var narrow_Cv = nn.functional.linear(Rows(hidden_TH, start), Weight.Data);
        if (CrossEntropyKernel.Supports(narrow_Cv, region.Group))
        {
            var factor = wantsGradient ? context.LossFactor : (double?)null;
            return (CrossEntropyKernel.Compute(narrow_Cv, Rows(context.Labels, start), Rows(context.LossWeights, start), factor), narrow_Cv);
        }
        var logits_Cv = narrow_Cv.to_type(wide);
        var loss = VocabParallelCrossEntropy.Compute(
            logits_Cv, Rows(context.Labels, start), Rows(context.LossWeights, start), wantsGradient ? context.LossFactor : null, region.Group);
        return (loss, wantsGradient ? logits_Cv.to_type(hidden_TH.dtype) : logits_Cv);
    }

    private Tensor Rows(Tensor x, int start) => x.narrow(0, start, Math.Min(chunkTokens, x.shape[0] - start));

    private static ScalarType AccumulationDtype(Tensor hidden) => hidden.dtype == ScalarType.Float64 ? ScalarType.Float64 : ScalarType.Float32;
}
