using Megatron.Compute.Configuration;
using Megatron.Compute.Moe;
using Megatron.Compute.Ops;
using Megatron.Compute.TensorParallel;
using static TorchSharp.torch;

namespace Megatron.Compute.Transformer;

/// <summary>
/// One pre-norm block: h = x + dropout(attention(norm(x))), y = h + dropout(mlp(norm(h))). The only place that knows the order of its
/// parts, and where the choice between a dense MLP and experts is made.
/// </summary>
/// <remarks>
/// Activations are [t, H]: this rank's tokens under sequence parallelism, else all. Communication of a dense layer over a TP group of p, for
/// one micro-batch of B = T · H · (bytes of an element): 4 all-reduces of B (2 forward, 2 backward), 2 (p − 1)/p · B sent by each rank for each;
/// with sequence parallelism 6 all-gathers (2 forward, 2 of output gradients, 2 of inputs for weight gradients) and 4 reduce-scatters,
/// (p − 1)/p · B each. Recompute repeats the forward's share of what it covers.
/// </remarks>
public sealed class TransformerLayer : ILayer
{
    private const int AttentionNorm = 0, Attention = 1, AttentionDropout = 2, MlpNorm = 3, MlpBlock = 4, MlpDropout = 5; // children

    private readonly RmsNormLayer attentionNorm;
    private readonly SelfAttention attention;
    private readonly Dropout attentionDropout;
    private readonly RmsNormLayer mlpNorm;
    private readonly IInputRestorable mlp;
    private readonly Dropout mlpDropout;
    private readonly SequenceParallelRegion region;
    private readonly bool recomputeNorms;

    /// <inheritdoc/>
    public IReadOnlyList<Parameter> Parameters { get; }

    /// <param name="prefix">Hugging Face prefix such as <c>model.layers.0</c>.</param>
    /// <param name="layerIndex">0-based global layer.</param>
    /// <exception cref="ConfigException">The architecture needs a block that does not exist.</exception>
    public TransformerLayer(LayerContext context, string prefix, int layerIndex)
    {
        var config = context.Config;
        region = context.Region;
        recomputeNorms = context.Recompute.Covers(RecomputeModules.LayerNorm);
        attentionNorm = CreateNorm(context, $"{prefix}.input_layernorm.weight");
        attention = new SelfAttention(context, $"{prefix}.self_attn", layerIndex);
        attentionDropout = new Dropout(config.HiddenDropout, context.Seed, layerIndex, DropoutStream.AttentionOutput);
        mlpNorm = CreateNorm(context, $"{prefix}.post_attention_layernorm.weight");
        mlp = config.Moe is { } moe && moe.IsMoeLayer(layerIndex)
            ? MoeBlock.Create(context, moe, $"{prefix}.mlp", layerIndex)
            : new Mlp(context, $"{prefix}.mlp", config.FfnHiddenSize);
        if (context.Recompute.Covers(mlp is MoeLayer ? RecomputeModules.Moe : RecomputeModules.Mlp)) mlp = new CheckpointedBlock(mlp);
        mlpDropout = new Dropout(config.HiddenDropout, context.Seed, layerIndex, DropoutStream.MlpOutput);
        Parameters = [.. attentionNorm.Parameters, .. attention.Parameters, .. mlpNorm.Parameters, .. mlp.Parameters];
    }

    /// <inheritdoc/>
    public Tensor Forward(Tensor x, Saved saved)
    {
        using var scope = NewDisposeScope();
        var attended = RunBlock(attentionNorm.Forward(x, saved.Child(AttentionNorm)), attentionNorm, saved.Child(AttentionNorm), attention, saved.Child(Attention));
        var dropped = attentionDropout.Forward(attended, region.FirstToken(x.shape[0]), saved.Child(AttentionDropout));
        var (hidden, normalized) = mlpNorm.ForwardAdd(x, dropped, saved.Child(MlpNorm));
        var addsResidual = mlp is Mlp && !mlpDropout.IsActive(saved.Context);
        var output = RunBlock(normalized, mlpNorm, saved.Child(MlpNorm), mlp, saved.Child(MlpBlock), addsResidual ? hidden : null);
        if (addsResidual) return output.MoveToOuterDisposeScope();
        return hidden.add(mlpDropout.Forward(output, region.FirstToken(x.shape[0]), saved.Child(MlpDropout))).MoveToOuterDisposeScope();
    }

    /// <inheritdoc/>
    public Tensor BackwardInput(Tensor gradOutput, Saved saved)
    {
        using var scope = NewDisposeScope();
        var gradMlp = mlpDropout.Backward(gradOutput, saved.Child(MlpDropout));
        var gradHidden = RunBlockBackward(gradMlp, gradOutput, mlpNorm, saved.Child(MlpNorm), mlp, saved.Child(MlpBlock));
        var gradAttended = attentionDropout.Backward(gradHidden, saved.Child(AttentionDropout));
        return RunBlockBackward(gradAttended, gradHidden, attentionNorm, saved.Child(AttentionNorm), attention, saved.Child(Attention)).MoveToOuterDisposeScope();
    }

    /// <inheritdoc/>
    public void BackwardWeight(Saved saved)
    {
        mlp.BackwardWeight(saved.Child(MlpBlock));
        mlpNorm.BackwardWeight(saved.Child(MlpNorm));
        attention.BackwardWeight(saved.Child(Attention));
        attentionNorm.BackwardWeight(saved.Child(AttentionNorm));
        foreach (var parameter in Parameters) parameter.CompleteGradient();
    }

    /// <summary>Ends the life of <paramref name="normalized"/> here: the block keeps what it needs.</summary>
    /// <param name="residual">For a dense MLP: what it adds to its output.</param>
    private Tensor RunBlock(Tensor normalized, RmsNormLayer norm, Saved normSaved, IInputRestorable block, Saved blockSaved, Tensor? residual = null)
    {
        using var input = normalized;
        var output = residual is not null && block is Mlp dense ? dense.ForwardAdd(input, residual, blockSaved) : block.Forward(input, blockSaved);
        if (RecomputesInput(norm, normSaved, block)) block.DiscardInput(blockSaved);
        return output;
    }

    /// <param name="residualGradient">What reaches the norm's input past block and norm.</param>
    private Tensor RunBlockBackward(Tensor gradOutput, Tensor residualGradient, RmsNormLayer norm, Saved normSaved, IInputRestorable block, Saved blockSaved)
    {
        var recomputes = RecomputesInput(norm, normSaved, block);
        if (recomputes && !block.TakesInputLate)
            using (var early = norm.Recompute(normSaved)) block.RestoreInput(early, blockSaved);
        using var gradNormalized = block.BackwardInput(gradOutput, blockSaved);
        var (gradInput, late) = norm.BackwardInput(gradNormalized, residualGradient, wantsOutput: recomputes && block.TakesInputLate, normSaved);
        using (late)
            if (late is not null) block.RestoreInput(late, blockSaved);
        return gradInput;
    }

    /// <summary>The block's input is thrown away in between: where that was asked for, or costs no more than writing it again.</summary>
    private bool RecomputesInput(RmsNormLayer norm, Saved normSaved, IInputRestorable block) =>
        recomputeNorms || (block.TakesInputLate && norm.GivesOutputAgain(normSaved));

    private static RmsNormLayer CreateNorm(LayerContext context, string name) =>
        new(context.CreateReplicatedVector(name, context.Config.HiddenSize, isPartial: context.Region.IsActive), context.Config.NormEpsilon);
}
