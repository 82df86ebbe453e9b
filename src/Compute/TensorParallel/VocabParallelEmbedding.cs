using Megatron.Compute.Ops;
using static TorchSharp.torch;

namespace Megatron.Compute.TensorParallel;

/// <summary>
/// Token embedding with the rows of the table split over the tensor-parallel group: each rank looks up the ids it owns, zeros stand for
/// the others, and the sum over the group is the embedding. Not an <see cref="ILayer"/>: ids have no gradient.
/// </summary>
/// <remarks>
/// Communication over a TP group, for one micro-batch: the embeddings are reduced (all-reduce, or reduce-scatter under sequence parallelism,
/// where the gradient is gathered). Shape letters: T tokens, t tokens outside the region, v rows of this rank, H hidden.
/// </remarks>
public sealed class VocabParallelEmbedding
{
    private const int GradOutput = 0;

    private readonly SequenceParallelRegion region;
    private readonly VocabularyShard shard;

    /// <summary>This rank's rows [v, H].</summary>
    public Parameter Weight { get; }

    /// <param name="shard">Which rows they are.</param>
    public VocabParallelEmbedding(Parameter weight_vH, VocabularyShard shard, SequenceParallelRegion region) =>
        (Weight, this.shard, this.region) = (weight_vH, shard, region);

    /// <param name="tokenIds_T">[T] int64.</param>
    /// <returns>[t, H].</returns>
    public Tensor Forward(Tensor tokenIds_T)
    {
        using var scope = NewDisposeScope();
        if (region.Group.Size == 1) return Weight.Data.index_select(0, tokenIds_T).MoveToOuterDisposeScope();
        var (rows_T, foreign_T) = shard.Map(tokenIds_T);
        var partial_TH = Weight.Data.index_select(0, rows_T).masked_fill_(foreign_T.unsqueeze(1), 0);
        return region.Reduce(partial_TH).MoveToOuterDisposeScope();
    }

    /// <summary>Keeps the gradient for the weight half; there is no input gradient.</summary>
    /// <param name="gradOutput_tH">[t, H].</param>
    public void BackwardInput(Tensor gradOutput_tH, Saved saved)
    {
        using var gradOutput_TH = region.Gather(gradOutput_tH);
        saved.Keep(GradOutput, gradOutput_TH);
    }

    /// <summary>Adds each token's gradient to its row of the main gradient, in fp32 and in token order.</summary>
    public void BackwardWeight(Saved saved)
    {
        using var scope = NewDisposeScope();
        var gradOutput_TH = saved.Take(GradOutput);
        var rows_T = saved.Context.TokenIds;
        if (region.Group.Size > 1)
        {
            (rows_T, var foreign_T) = shard.Map(rows_T);
            gradOutput_TH = gradOutput_TH.masked_fill(foreign_T.unsqueeze(1), 0);
        }
        GradientAccumulation.AddEmbeddingRows(Weight.MainGrad, gradOutput_TH, rows_T);
    }
}
