using Megatron.Compute.Configuration;
using Megatron.Compute.Data;
using Megatron.Compute.Moe;
using Megatron.Compute.Ops;
using static TorchSharp.torch;

namespace Megatron.Compute.Tests.Moe;

/// <summary>
/// A layer with experts written down as its formulas say, for autograd to differentiate: every expert sees every token, a dense matrix of weights
/// picks, losses are loops over sequences.
/// </summary>
public sealed class ReferenceMoe(ModelConfig config, MoeOptions options)
{
    private readonly MoeConfig moe = config.Moe ?? throw new InvalidOperationException("no experts");

    /// <summary>Of the last forward, without the coefficient; 0 when there is none.</summary>
    public double BalanceLoss { get; private set; }

    /// <summary>Of the last forward, without the coefficient; 0 when there is none.</summary>
    public double ZLoss { get; private set; }

    /// <summary>
    /// Σ output · <paramref name="projection_TH"/>, with the gradient of the auxiliary losses (times the context's factor) but not their value.
    /// </summary>
    public Tensor Projected(Tensor x, IReadOnlyList<Tensor> weights, ForwardContext context, Tensor projection_TH)
    {
        var sequences = Sequences(context.Batch);
        var real = tensor(sequences.SelectMany(sequence => sequence).ToArray(), int64);
        var result = (Routed(x.index_select(0, real), weights, sequences, out var auxiliary) * projection_TH.index_select(0, real)).sum();
        if (moe.SharedExpertFfnHiddenSize is not null) result = result + (Shared(x, weights) * projection_TH).sum();
        return result + (auxiliary - auxiliary.detach()) * context.AuxiliaryLossFactor;
    }

    private Tensor Routed(Tensor x, IReadOnlyList<Tensor> weights, long[][] sequences, out Tensor auxiliary)
    {
        var logits = nn.functional.linear(x, weights[0]);
        var probabilities = logits.softmax(-1);
        var (values, chosen) = (moe.PreSoftmax ? probabilities : logits).topk(moe.TopK, dim: -1);
        var isChosen = zeros_like(logits).scatter(1, chosen, ones_like(values));
        auxiliary = Auxiliary(logits, probabilities, isChosen, sequences);
        var dense = zeros_like(logits).scatter(1, chosen, moe.PreSoftmax ? values : values.softmax(-1));
        var result = zeros_like(x);
        for (var expert = 0; expert < moe.NumExperts; expert++)
            result = result + Mlp(x, weights[1][expert], weights[2][expert]) * dense.narrow(1, expert, 1);
        return result;
    }

    private Tensor Auxiliary(Tensor logits, Tensor probabilities, Tensor isChosen, long[][] sequences)
    {
        (BalanceLoss, ZLoss) = (0, 0);
        var total = zeros([], ScalarType.Float64);
        if (logits.shape[0] == 0) return total;
        if (options.HasBalanceLoss)
        {
            var lengths = options.LoadBalancing == LoadBalancing.SequenceAuxiliaryLoss ? sequences.Select(sequence => sequence.Length).ToArray() : [(int)logits.shape[0]];
            var (first, loss) = (0, zeros([], ScalarType.Float64));
            foreach (var length in lengths)
            {
                var share = isChosen.narrow(0, first, length).sum(dim: 0) * ((double)moe.NumExperts / (length * moe.TopK));
                loss = loss + (share * probabilities.narrow(0, first, length).mean([0])).sum() / lengths.Length;
                first += length;
            }
            BalanceLoss = loss.item<double>();
            total = total + loss * options.AuxLossCoeff;
        }
        if (options.ZLossCoeff == 0) return total;
        var zLoss = logits.exp().sum(-1).log().pow(2).mean();
        ZLoss = zLoss.item<double>();
        return total + zLoss * options.ZLossCoeff;
    }

    private static Tensor Shared(Tensor x, IReadOnlyList<Tensor> weights) => Mlp(x, weights[3], weights[4]) * nn.functional.linear(x, weights[5]).sigmoid();

    private static Tensor Mlp(Tensor x, Tensor gateUp, Tensor down)
    {
        var halves = nn.functional.linear(x, gateUp).chunk(2, -1);
        return nn.functional.linear(nn.functional.silu(halves[0]) * halves[1], down);
    }

    /// <summary>Token indexes of each sequence without its padding.</summary>
    private static long[][] Sequences(MicroBatch batch)
    {
        var result = new List<long[]>();
        for (var i = 0; i + 1 < batch.CuSeqLens.Length; i++)
        {
            var isPadding = batch.NumPaddingTokens > 0 && i == batch.CuSeqLens.Length - 2;
            var length = isPadding ? 0 : batch.CuSeqLens[i + 1] - batch.CuSeqLens[i] - (batch.SegmentPadding?[i] ?? 0);
            if (length > 0) result.Add([.. Enumerable.Range(batch.CuSeqLens[i], length).Select(token => (long)token)]);
        }
        return [.. result];
    }
}

/// <summary>Σ output · projection of a layer: a scalar, so that auxiliary losses can be added on the other side of a comparison.</summary>
/// <param name="inner">The layer.</param>
/// <param name="projection_TH">Weight of each output element.</param>
public sealed class ProjectedLayer(ILayer inner, Tensor projection_TH) : ILayer
{
    public IReadOnlyList<Parameter> Parameters => inner.Parameters;

    public Tensor Forward(Tensor x, Saved saved)
    {
        using var scope = NewDisposeScope();
        return (inner.Forward(x, saved) * projection_TH).sum().MoveToOuterDisposeScope();
    }

    public Tensor BackwardInput(Tensor gradOutput, Saved saved)
    {
        using var scope = NewDisposeScope();
        return inner.BackwardInput(projection_TH * gradOutput, saved).MoveToOuterDisposeScope();
    }

    public void BackwardWeight(Saved saved) => inner.BackwardWeight(saved);
}
