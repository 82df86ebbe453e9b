using Megatron.Compute.Distributed;
using static TorchSharp.torch;

namespace Megatron.Compute.TensorParallel;

/// <summary>
/// The rows of a vocabulary that one rank of the tensor-parallel group holds. A vocabulary that the group does not divide is padded at its end, so
/// that all ranks hold equally many rows; padding rows are 0, belong to no Hugging Face tensor, and no token and no softmax sees them.
/// </summary>
public sealed record VocabularyShard
{
    /// <summary>Rows of a padded shard are rounded up to this: matrix products of 16-bit types want strides of 16 bytes.</summary>
    private const int Alignment = 8;

    /// <summary>Rows of the whole vocabulary, without padding.</summary>
    public int VocabSize { get; }

    /// <summary>Rows of this rank's tensor, padding included: the same on every rank.</summary>
    public int NumRows { get; }

    /// <summary>Token id of the first row.</summary>
    public int FirstRow { get; }

    /// <summary>Rows that are token ids; the others are at the end.</summary>
    public int NumTokenRows { get; }

    /// <param name="vocabSize">Rows of the whole vocabulary.</param>
    /// <param name="group">The tensor-parallel group.</param>
    public VocabularyShard(int vocabSize, ProcessGroup group)
    {
        VocabSize = vocabSize;
        var share = (vocabSize + group.Size - 1) / group.Size;
        NumRows = vocabSize % group.Size == 0 ? share : (share + Alignment - 1) / Alignment * Alignment;
        FirstRow = group.Rank * NumRows;
        NumTokenRows = Math.Clamp(vocabSize - FirstRow, 0, NumRows);
    }

    /// <summary>Row of each id, 0 where another rank owns it, and true where another rank owns it.</summary>
    /// <param name="ids_T">int64 token ids; negative ones are nobody's.</param>
    public (Tensor Rows, Tensor Foreign) Map(Tensor ids_T)
    {
        var rows_T = ids_T.sub(FirstRow);
        var foreign_T = rows_T.lt(0).logical_or_(rows_T.ge(NumTokenRows));
        return (rows_T.masked_fill_(foreign_T, 0), foreign_T);
    }

    /// <summary>Sets the logits of padding rows to −∞, in place.</summary>
    /// <param name="logits_Tv">[T, <see cref="NumRows"/>].</param>
    public void MaskPadding(Tensor logits_Tv)
    {
        if (NumTokenRows == NumRows) return;
        using var padding = logits_Tv.narrow(1, NumTokenRows, NumRows - NumTokenRows);
        padding.fill_(float.NegativeInfinity);
    }
}
