using Megatron.Compute.Data;
using static TorchSharp.torch;

namespace Megatron.Compute.Ops;

/// <summary>
/// The tokens of this rank's share of a row that are not padding, and the sequence each belongs to. What must not see padding (routing,
/// balance losses) works on these tokens alone.
/// </summary>
/// <remarks>Shape letters: T tokens of this rank's activations, N real tokens.</remarks>
public sealed class RealTokens : IDisposable
{
    /// <summary>[N] int64 index in this rank's activations of each real token, ascending; null when they are all of them.</summary>
    public Tensor? Index { get; }

    /// <summary>[N] int64 segment of the row that each real token belongs to: the same numbers on all ranks that share the row.</summary>
    public Tensor Sequence { get; }

    /// <summary>Segments of the row, those without real tokens included.</summary>
    public int NumSequences { get; }

    /// <summary>The share that these tokens were chosen from.</summary>
    public TokenShare Share { get; }

    /// <param name="batch">The row.</param>
    /// <param name="share">This rank's tokens of it.</param>
    /// <param name="numTokens">T.</param>
    /// <param name="device">Where the tensors go.</param>
    public RealTokens(MicroBatch batch, TokenShare share, long numTokens, Device device)
    {
        var (index, sequence) = (new List<long>(share.End - share.First), new List<long>(share.End - share.First));
        (NumSequences, Share) = (batch.CuSeqLens.Length - 1, share);
        for (var segment = 0; segment < NumSequences; segment++)
        {
            var first = Math.Max(batch.CuSeqLens[segment], share.First);
            var end = Math.Min(batch.CuSeqLens[segment + 1] - (batch.SegmentPadding?[segment] ?? 0), batch.NumTokens - batch.NumPaddingTokens);
            for (var i = first; i < Math.Min(end, share.End); i++)
            {
                index.Add(i - share.Origin);
                sequence.Add(segment);
            }
        }
        Sequence = tensor(sequence.ToArray(), int64, device).DetachFromDisposeScope();
        if (index.Count < numTokens) Index = tensor(index.ToArray(), int64, device).DetachFromDisposeScope();
    }

    /// <summary>The real rows of [T, H]: a fresh tensor, or an alias when all are real.</summary>
    public Tensor Select(Tensor x_TH) => Index is null ? x_TH.alias() : x_TH.index_select(0, Index);

    /// <summary>Puts [N, H] back into [T, H] with zeros elsewhere: a fresh tensor, or an alias when all are real.</summary>
    /// <param name="numTokens">T.</param>
    public Tensor Scatter(Tensor x_NH, long numTokens) =>
        Index is null ? x_NH.alias() : zeros([numTokens, .. x_NH.shape[1..]], x_NH.dtype, x_NH.device).index_copy_(0, Index, x_NH);

    /// <inheritdoc/>
    public void Dispose()
    {
        Index?.Dispose();
        Sequence.Dispose();
    }
}
