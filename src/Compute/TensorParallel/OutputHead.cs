using Megatron.Compute.Ops;
using static TorchSharp.torch;

namespace Megatron.Compute.TensorParallel;

/// <summary>
/// The vocabulary projection and the loss, in chunks of tokens, so that the logits of one chunk exist at a time. In training, Forward turns the
/// logits of a chunk into their gradient in place and that at once into the chunk's share of the hidden gradient and of the weight gradient:
/// the loss factor is known beforehand (DESIGN D8), so nothing is computed twice and no [T, V] tensor ever exists.
/// </summary>
/// <remarks>
/// Communication over a TP group, for one micro-batch: the hidden states are gathered under sequence parallelism, their gradient is reduced
/// (all-reduce, or reduce-scatter), and 3 all-reduces of T fp32 values make the cross-entropy. Shape letters: T tokens, t tokens outside the
/// region, C tokens of a chunk, v rows of the vocabulary on this rank, H hidden.
/// </remarks>
public sealed class OutputHead
{
    private const int GradHidden = 0; // [T, H]

    private readonly VocabularyShard shard;
    private readonly SequenceParallelRegion region;
    private readonly ProductOptions products;
    private readonly int chunkTokens;

    /// <summary>This rank's rows [v, H]; the embedding's when they are tied.</summary>
    public Parameter Weight { get; }

    /// <param name="shard">Which rows they are.</param>
    /// <param name="chunkTokens">Tokens per chunk.</param>
    /// <param name="products">Float8 does not reach the head: its products stay in the model's dtype.</param>
    public OutputHead(Parameter weight_vH, VocabularyShard shard, SequenceParallelRegion region, ProductOptions products, int chunkTokens) =>
        (Weight, this.shard, this.region, this.products, this.chunkTokens) = (weight_vH, shard, region, products, chunkTokens);

    /// <summary>
    /// Σ weight · cross-entropy of the micro-batch, unscaled; the loss factor of the context is in the gradients only. In training this also adds
    /// the weight gradient, so the accumulator of the micro-batch must be selected before.
    /// </summary>
    /// <param name="hidden_tH">[t, H].</param>
    /// <returns>fp32 scalar (fp64 for an fp64 model), the same on every rank of the group.</returns>
    public Tensor Forward(Tensor hidden_tH, Saved saved)
    {
        using var scope = NewDisposeScope();
        var hidden_TH = region.Gather(hidden_tH);
        var isTraining = saved.Context.IsTraining;
        var gradHidden_TH = isTraining ? empty_like(hidden_TH) : null;
        var total = zeros([], AccumulationDtype(hidden_TH), hidden_TH.device);
        for (var start = 0; start < hidden_TH.shape[0]; start += chunkTokens)
        {
            using var chunkScope = NewDisposeScope();
            var (loss, gradLogits_Cv) = Chunk(hidden_TH, start, saved.Context, isTraining);
            total.add_(loss);
            if (gradHidden_TH is null) continue;
            LinearProduct.InputGradientInto(Rows(gradHidden_TH, start), gradLogits_Cv, Weight.Data, products);
            WeightGradient.Accumulate(Weight, gradLogits_Cv, Rows(hidden_TH, start), products);
        }
        if (gradHidden_TH is not null) saved.Keep(GradHidden, gradHidden_TH);
        return total.MoveToOuterDisposeScope();
    }

    /// <summary>Gradient of (loss factor × loss) with respect to the hidden states, [t, H].</summary>
    public Tensor BackwardInput(Saved saved)
    {
        using var scope = NewDisposeScope();
        return region.Reduce(saved.Take(GradHidden)).MoveToOuterDisposeScope();
    }

    /// <summary>All logits, [T, V] in the model dtype, on every rank: for inference and verification.</summary>
    public Tensor Logits(Tensor hidden_tH)
    {
        using var scope = NewDisposeScope();
        var logits_Tv = LinearProduct.Output(region.Gather(hidden_tH), Weight.Data, null, products);
        var group = region.Group;
        if (group.Size == 1) return logits_Tv.MoveToOuterDisposeScope();
        var gathered = empty([group.Size, .. logits_Tv.shape], logits_Tv.dtype, logits_Tv.device);
        using (group.AllGather(gathered, logits_Tv)) { }
        return gathered.transpose(0, 1).reshape(logits_Tv.shape[0], -1).narrow(1, 0, shard.VocabSize).contiguous().MoveToOuterDisposeScope();
    }

    private (Tensor Loss, Tensor Gradient) Chunk(Tensor hidden_TH, int start, ForwardContext context, bool wantsGradient)
    {
        var wide = AccumulationDtype(hidden_TH);
        var narrow_Cv = LinearProduct.Output(Rows(hidden_TH, start), Weight.Data, null, products);
        if (CrossEntropyKernel.Supports(narrow_Cv, region.Group))
        {
            var factor = wantsGradient ? context.LossFactorOnDevice : null;
            return (CrossEntropyKernel.Compute(narrow_Cv, Rows(context.Labels, start), Rows(context.LossWeights, start), factor), narrow_Cv);
        }
        var logits_Cv = narrow_Cv.to_type(wide);
        var loss = VocabParallelCrossEntropy.Compute(
            logits_Cv, Rows(context.Labels, start), Rows(context.LossWeights, start), wantsGradient ? context.LossFactor : null, shard, region.Group);
        return (loss, wantsGradient ? logits_Cv.to_type(hidden_TH.dtype) : logits_Cv);
    }

    private Tensor Rows(Tensor x, int start) => x.narrow(0, start, Math.Min(chunkTokens, x.shape[0] - start));

    private static ScalarType AccumulationDtype(Tensor hidden) => hidden.dtype == ScalarType.Float64 ? ScalarType.Float64 : ScalarType.Float32;
}
