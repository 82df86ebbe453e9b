using Megatron.Compute.Data;
using Megatron.Compute.Ops;
using static TorchSharp.torch;

namespace Megatron.Compute.Inference;

/// <summary>
/// One forward pass over new tokens of several sequences that stand one after another in a packed row: the whole prompts at first, then one
/// token of each. Every sequence attends by itself, with the same operations as if it were alone.
/// </summary>
internal sealed class CachedRow : IAttentionCache
{
    private readonly KvCache[] caches;
    private readonly int[][] newTokens;

    /// <param name="caches">One for each sequence.</param>
    /// <param name="newTokens">Its next tokens, at least one.</param>
    public CachedRow(KvCache[] caches, int[][] newTokens) => (this.caches, this.newTokens) = (caches, newTokens);

    /// <summary>The row as a model reads it: positions continue those of the caches.</summary>
    public MicroBatch ToMicroBatch()
    {
        var ids = newTokens.SelectMany(tokens => tokens, (_, id) => (long)id).ToArray();
        var borders = new int[newTokens.Length + 1];
        for (var i = 0; i < newTokens.Length; i++) borders[i + 1] = borders[i] + newTokens[i].Length;
        return new MicroBatch
        {
            TokenIds = ids,
            Labels = [.. Enumerable.Repeat((long)MicroBatch.IgnoreIndex, ids.Length)],
            Positions = [.. newTokens.SelectMany((tokens, i) => Enumerable.Range(caches[i].Length, tokens.Length))],
            CuSeqLens = borders,
            GlobalTokenIndex = [.. Enumerable.Range(0, ids.Length)],
            NumTargetTokens = 0,
        };
    }

    /// <inheritdoc/>
    public Tensor? Attend(AttentionShape shape, Tensor q_TND, Tensor k_TGD, Tensor v_TGD)
    {
        var hasPast = false;
        for (int i = 0, start = 0; i < caches.Length; start += newTokens[i++].Length)
        {
            using var k = k_TGD.narrow(0, start, newTokens[i].Length);
            using var v = v_TGD.narrow(0, start, newTokens[i].Length);
            caches[i].Append(shape.LayerIndex, k, v);
            hasPast |= caches[i].Length > 0;
        }
        if (!hasPast) return null;

        using var scope = NewDisposeScope();
        var attended_TND = empty(q_TND.shape, q_TND.dtype, q_TND.device);
        for (int i = 0, start = 0; i < caches.Length; start += newTokens[i++].Length)
            attended_TND.narrow(0, start, newTokens[i].Length).copy_(caches[i].Attend(shape, q_TND.narrow(0, start, newTokens[i].Length)));
        return attended_TND.MoveToOuterDisposeScope();
    }

    /// <summary>Ends the pass.</summary>
    public void Advance()
    {
        for (var i = 0; i < caches.Length; i++) caches[i].Advance(newTokens[i].Length);
    }
}
