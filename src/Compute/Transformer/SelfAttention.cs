using Megatron.Compute.Configuration;
using Megatron.Compute.Ops;
using Megatron.Compute.Ops.ContextParallel;
using Megatron.Compute.TensorParallel;
using static TorchSharp.torch;

namespace Megatron.Compute.Transformer;

/// <summary>
/// Causal self-attention with grouped heads, optional q/k/v bias, optional norm of q and k per head, and rotary positions. q, k and v
/// are one fused matrix: this rank's query heads, then its key heads, then its value heads.
/// </summary>
/// <remarks>Shape letters: T tokens, H hidden, N query heads, G key/value heads (of this rank), D channels of a head, A = N + G, Q = N + 2G.</remarks>
public sealed class SelfAttention : IInputRestorable
{
    private const int RawQueryKey = 0, InverseRms = 1, GradQkNormParts = 2; // slots
    private const int QkvLinear = 0, Core = 1, OutputLinear = 2;            // children

    private readonly int numHeads;
    private readonly int numGroups;
    private readonly int headDim;
    private readonly double epsilon;
    private readonly ColumnParallelLinear qkv;
    private readonly ICoreAttention core;
    private readonly RowParallelLinear output;
    private readonly RotaryEmbedding rotary;
    private readonly Parameter? queryNorm;
    private readonly Parameter? keyNorm;

    private QueryKeyNorm? Norm => queryNorm is null || keyNorm is null ? null : new QueryKeyNorm(queryNorm.Data, keyNorm.Data, epsilon);

    /// <inheritdoc/>
    public IReadOnlyList<Parameter> Parameters { get; }

    /// <param name="prefix">Hugging Face prefix such as <c>model.layers.0.self_attn</c>.</param>
    /// <param name="layerIndex">0-based global layer.</param>
    public SelfAttention(LayerContext context, string prefix, int layerIndex)
    {
        var (config, tp, rank) = (context.Config, context.TensorParallelSize, context.Region.Group.Rank);
        numHeads = Divide.Exactly(config.NumAttentionHeads, tp, "num_attention_heads", "tensor_model_parallel_size");
        numGroups = Divide.Exactly(config.NumQueryGroups, tp, "num_query_groups", "tensor_model_parallel_size");
        (headDim, epsilon, rotary) = (config.KvChannels, config.NormEpsilon, context.Rotary);

        var layout = new QkvLayout(config, prefix, numHeads, numGroups, rank);
        var weight = context.Weights.Create(
            $"{prefix}.qkv_proj.weight", [layout.Rows, config.HiddenSize], layout.WeightBlocks(), Sharded(decays: true));
        var bias = config.AddQkvBias
            ? context.Weights.Create($"{prefix}.qkv_proj.bias", [layout.Rows], layout.BiasBlocks(), Sharded(decays: false))
            : null;
        qkv = new ColumnParallelLinear(weight, bias, context.Region, context.Products);
        if (config.QkLayerNorm)
        {
            queryNorm = context.CreateReplicatedVector($"{prefix}.q_norm.weight", headDim, isPartial: tp > 1);
            keyNorm = context.CreateReplicatedVector($"{prefix}.k_norm.weight", headDim, isPartial: tp > 1);
        }
        var shape = new AttentionShape(numHeads, numGroups, headDim, FirstHead: rank * numHeads, layerIndex);
        core = CreateCore(context, shape);
        output = new RowParallelLinear(CreateOutputWeight(context, prefix, rank), context.Region, context.Products);
        Parameter[] norms = queryNorm is null || keyNorm is null ? [] : [queryNorm, keyNorm];
        Parameters = [.. qkv.Parameters, .. norms, .. output.Parameters];
    }

    /// <inheritdoc/>
    public Tensor Forward(Tensor x, Saved saved)
    {
        using var scope = NewDisposeScope();
        var heads_TQD = qkv.Forward(x, saved.Child(QkvLinear)).view(-1, numHeads + 2 * numGroups, headDim);
        var (queryKey_TAD, inverseRms) = QueryKeyNormRotary.Forward(heads_TQD, numHeads, numGroups, Norm, rotary, saved.Context.Positions);
        if (inverseRms is not null)
        {
            saved.Keep(RawQueryKey, heads_TQD.narrow(1, 0, numHeads + numGroups));
            saved.Keep(InverseRms, inverseRms);
        }
        var attended_TND = core.Forward(
            queryKey_TAD.narrow(1, 0, numHeads), queryKey_TAD.narrow(1, numHeads, numGroups), heads_TQD.narrow(1, numHeads + numGroups, numGroups),
            saved.Child(Core));
        return output.Forward(attended_TND.reshape(-1, numHeads * headDim), saved.Child(OutputLinear)).MoveToOuterDisposeScope();
    }

    /// <inheritdoc/>
    public Tensor BackwardInput(Tensor gradOutput, Saved saved)
    {
        using var scope = NewDisposeScope();
        var gradAttended_TND = output.BackwardInput(gradOutput, saved.Child(OutputLinear)).view(-1, numHeads, headDim);
        var gradients = core.Backward(gradAttended_TND, saved.Child(Core));
        var raw = Norm is null ? ((Tensor, Tensor)?)null : (saved.Take(RawQueryKey), saved.Take(InverseRms));
        var (grad_TQD, gradWeightParts_P2D) = QueryKeyNormRotary.Backward(gradients, raw, Norm, rotary, saved.Context.Positions);
        if (gradWeightParts_P2D is not null) saved.Keep(GradQkNormParts, gradWeightParts_P2D);
        return qkv.BackwardInput(grad_TQD.view(grad_TQD.shape[0], -1), saved.Child(QkvLinear)).MoveToOuterDisposeScope();
    }

    /// <inheritdoc/>
    public void BackwardWeight(Saved saved)
    {
        output.BackwardWeight(saved.Child(OutputLinear));
        qkv.BackwardWeight(saved.Child(QkvLinear));
        if (queryNorm is null || keyNorm is null) return;
        using var scope = NewDisposeScope();
        var gradWeightParts_P2D = saved.Take(GradQkNormParts);
        WeightGradient.AddSum(queryNorm, gradWeightParts_P2D.select(1, 0));
        WeightGradient.AddSum(keyNorm, gradWeightParts_P2D.select(1, 1));
    }

    /// <inheritdoc/>
    public bool TakesInputLate => true;

    /// <inheritdoc/>
    public void DiscardInput(Saved saved) => qkv.DiscardInput(saved.Child(QkvLinear));

    /// <inheritdoc/>
    public void RestoreInput(Tensor x, Saved saved) => qkv.RestoreInput(x, saved.Child(QkvLinear));

    private static ICoreAttention CreateCore(LayerContext context, AttentionShape shape)
    {
        var (options, dropout, seed) = (context.Attention, context.Config.AttentionDropout, context.Seed);
        var (group, recompute) = (context.Parallel.ContextParallel, context.Recompute.Covers(RecomputeModules.CoreAttention));
        if (group.Size == 1) return new CoreAttention(shape, options, dropout, seed, recompute);
        if (options.ContextExchange == ContextExchange.Ring) return new RingAttention(shape, options, dropout, seed, recompute, group);
        var heads = Divide.Exactly(shape.NumHeads, group.Size, "query heads of a tensor-parallel rank", "context_parallel_size");
        var part = shape with
        {
            NumHeads = heads,
            NumGroups = Divide.Exactly(shape.NumGroups, group.Size, "query groups of a tensor-parallel rank", "context_parallel_size"),
            FirstHead = shape.FirstHead + group.Rank * heads,
        };
        return new UlyssesAttention(part, new CoreAttention(part, options, dropout, seed, recompute), group);
    }

    private Parameter CreateOutputWeight(LayerContext context, string prefix, int rank)
    {
        var (hidden, total, local) = (context.Config.HiddenSize, context.Config.NumAttentionHeads * headDim, numHeads * headDim);
        var block = new TensorBlock($"{prefix}.o_proj.weight", [hidden, total], [0, rank * local], [hidden, local], 0);
        return context.Weights.Create(block.Name, [hidden, local], [block], Sharded(decays: true));
    }

    private static ParameterTraits Sharded(bool decays) => new() { Decays = decays, IsTensorSharded = true };

    /// <summary>Where the fused rows come from: q, k and v of the Hugging Face model, this rank's heads of each.</summary>
    private sealed record QkvLayout(ModelConfig Config, string Prefix, int NumHeads, int NumGroups, int Rank)
    {
        public int Rows => (NumHeads + 2 * NumGroups) * Config.KvChannels;

        public TensorBlock[] WeightBlocks() => Blocks("weight", [Config.HiddenSize]);

        public TensorBlock[] BiasBlocks() => Blocks("bias", []);

        private TensorBlock[] Blocks(string kind, long[] columns)
        {
            var (queryRows, groupRows) = ((long)NumHeads * Config.KvChannels, (long)NumGroups * Config.KvChannels);
            var width = columns is [var single] ? single : 1;
            var zeros = new long[columns.Length];
            TensorBlock Part(string name, int heads, long rows, long firstRow) => new(
                $"{Prefix}.{name}.{kind}",
                [(long)heads * Config.KvChannels, .. columns], [Rank * rows, .. zeros], [rows, .. columns], firstRow * width);
            return
            [
                Part("q_proj", Config.NumAttentionHeads, queryRows, 0),
                Part("k_proj", Config.NumQueryGroups, groupRows, queryRows),
                Part("v_proj", Config.NumQueryGroups, groupRows, queryRows + groupRows),
            ];
        }
    }
}
