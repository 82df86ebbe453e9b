using Megatron.Compute.Ops;
using TorchSharp;
using static TorchSharp.torch;

namespace Megatron.Compute.TensorParallel;

/// <summary>
/// Token embedding with the rows of the table split over the tensor-parallel group: each rank looks up the ids it owns, zeros stand for
/// the others, and the sum over the group is the embedding. Not an <see cref="ILayer"/>: ids have no gradient.
/// </summary>
/// <remarks>Shape letters: T tokens, t tokens outside the region, v = V / tp rows of this rank, H hidden.</remarks>
public sealed class VocabParallelEmbedding
{
    private const int GradOutput = 0;

    private readonly SequenceParallelRegion region;
    private readonly long firstRow;
    private readonly long numRows;

    /// <summary>This rank's rows [v, H].</summary>
    public Parameter Weight { get; }

    public VocabParallelEmbedding(Parameter weight_vH, SequenceParallelRegion region)
    {
        (Weight, this.region, numRows) = (weight_vH, region, weight_vH.Shape[0]);
        firstRow = region.Group.Rank * numRows;
    }

    /// <param name="tokenIds_T">[T] int64.</param>
    /// <returns>[t, H].</returns>
    public Tensor Forward(Tensor tokenIds_T)
    {
        using var scope = NewDisposeScope();
        if (region.Group.Size == 1) return Weight.Data.index_select(0, tokenIds_T).MoveToOuterDisposeScope();
        var (rows_T, foreign_T) = LocalRows(tokenIds_T);
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
        var gradOutput_TH = saved.Take(GradOutput).to_type(Weight.MainGrad.dtype);
        var rows_T = saved.Context.TokenIds;
        if (region.Group.Size > 1)
        {
            (rows_T, var foreign_T) = LocalRows(rows_T);
            gradOutput_TH = gradOutput_TH.masked_fill(foreign_T.unsqueeze(1), 0);
        }
        // On a GPU index_add_ adds with atomics, in any order; index_put_ sorts the tokens first, so each row has one order of additions.
        if (gradOutput_TH.device_type == DeviceType.CUDA) Weight.MainGrad.index_put_(gradOutput_TH, [rows_T], true);
        else Weight.MainGrad.index_add_(0, rows_T, gradOutput_TH, 1);
    }

    private (Tensor Rows, Tensor Foreign) LocalRows(Tensor tokenIds_T) => LocalVocabulary.Map(tokenIds_T, firstRow, numRows);
}

/// <summary>Maps global token ids to rows of this rank's part of the vocabulary.</summary>
internal static class LocalVocabulary
{
    /// <summary>Row of each id, 0 where another rank owns it, and true where another rank owns it.</summary>
    public static (Tensor Rows, Tensor Foreign) Map(Tensor ids_T, long firstRow, long numRows)
    {
        var rows_T = ids_T.sub(firstRow);
        var foreign_T = rows_T.lt(0).logical_or_(rows_T.ge(numRows));
        return (rows_T.masked_fill_(foreign_T, 0), foreign_T);
    }
}
