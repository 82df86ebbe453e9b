using Megatron.Compute.Data;
using static TorchSharp.torch;

namespace Megatron.Compute.Ops;

/// <summary>
/// Attention of a row that this rank holds whole: consecutive segments of equal length are computed as one batch, viewed without a copy.
/// Chooses the kernel; recomputes it in the backward when asked to.
/// </summary>
/// <remarks>Shape letters: T tokens, N query heads, G key/value heads, D channels of a head. A padding segment is skipped: zeros.</remarks>
public sealed class CoreAttention : ICoreAttention
{
    private const int Query = 0, Key = 1, Value = 2;

    private readonly AttentionShape shape;
    private readonly AttentionOptions options;
    private readonly bool recompute;
    private readonly bool hasDropout;
    private readonly UnfusedAttention unfused;
    private readonly FlashAttention flash;
    private readonly CudnnAttention cudnn;
    private readonly PackedFlashAttention packed;
    private MicroBatch? plannedBatch;
    private SegmentGroup[] plan = [];

    /// <param name="dropout">Probability of dropping an attention weight in training.</param>
    /// <param name="seed">The run's seed.</param>
    /// <param name="recompute">Keep only q, k and v and run the kernel again in the backward.</param>
    public CoreAttention(AttentionShape shape, AttentionOptions options, double dropout, long seed, bool recompute)
    {
        (this.shape, this.options, this.recompute, hasDropout) = (shape, options, recompute, dropout > 0);
        unfused = new UnfusedAttention(shape, options, dropout, seed);
        flash = new FlashAttention(shape);
        cudnn = new CudnnAttention(shape);
        packed = new PackedFlashAttention(shape);
    }

    /// <inheritdoc/>
    public Tensor Forward(Tensor q_TND, Tensor k_TGD, Tensor v_TGD, Saved saved)
    {
        if (saved.Context.AttentionCache?.Attend(shape, q_TND, k_TGD, v_TGD) is { } attended) return attended;
        saved.Keep(Query, q_TND);
        saved.Keep(Key, k_TGD);
        saved.Keep(Value, v_TGD);
        var output = Run(q_TND, k_TGD, v_TGD, saved);
        if (recompute) DropKernels(saved);
        return output;
    }

    /// <inheritdoc/>
    public AttentionGradients Backward(Tensor gradOutput_TND, Saved saved)
    {
        using var scope = NewDisposeScope();
        var (q, k, v) = (saved.Take(Query), saved.Take(Key), saved.Take(Value));
        if (recompute) Run(q, k, v, saved).Dispose();
        var groups = Plan(saved.Context.WholeRow);
        if (RunsPacked(q, saved.Context, groups)) return ToOuterScope(packed.Backward(gradOutput_TND, new AttentionInputs(q, k, v), saved.Child(0)));
        if (groups is [var whole] && whole.NumTokens == q.shape[0])
        {
            var (gradQuery, gradKey, gradValue) = BackwardGroup(0, whole, gradOutput_TND, new AttentionInputs(q, k, v), saved);
            return ToOuterScope(new AttentionGradients(gradQuery.reshape(q.shape), gradKey.reshape(k.shape), gradValue.reshape(v.shape)));
        }
        // Padding is in no group: its gradient is zero.
        var result = new AttentionGradients(zeros(q.shape, q.dtype, q.device), zeros(k.shape, k.dtype, k.device), zeros(v.shape, v.dtype, v.device));
        for (var i = 0; i < groups.Length; i++)
        {
            using var part = NewDisposeScope();
            var (gradQuery, gradKey, gradValue) = BackwardGroup(i, groups[i], gradOutput_TND, new AttentionInputs(q, k, v), saved);
            Rows(result.Query, groups[i]).copy_(gradQuery);
            Rows(result.Key, groups[i]).copy_(gradKey);
            Rows(result.Value, groups[i]).copy_(gradValue);
        }
        return ToOuterScope(result);
    }

    private AttentionGradients BackwardGroup(int index, SegmentGroup group, Tensor gradOutput_TND, AttentionInputs whole, Saved saved)
    {
        var inputs = new AttentionInputs(Rows(whole.Query, group), Rows(whole.Key, group), Rows(whole.Value, group));
        var gradients = Choose(whole.Query, saved.Context, group).Backward(group, Rows(gradOutput_TND, group), inputs, saved.Child(index));
        saved.Child(index).Drop();
        return gradients;
    }

    private static AttentionGradients ToOuterScope(AttentionGradients gradients) => new(
        gradients.Query.MoveToOuterDisposeScope(), gradients.Key.MoveToOuterDisposeScope(), gradients.Value.MoveToOuterDisposeScope());

    private Tensor Run(Tensor q_TND, Tensor k_TGD, Tensor v_TGD, Saved saved)
    {
        using var scope = NewDisposeScope();
        var groups = Plan(saved.Context.WholeRow);
        if (RunsPacked(q_TND, saved.Context, groups)) return packed.Forward(q_TND, k_TGD, v_TGD, saved.Child(0)).MoveToOuterDisposeScope();
        if (groups is [var whole] && whole.NumTokens == q_TND.shape[0])
            return RunGroup(Choose(q_TND, saved.Context, whole), whole, q_TND, k_TGD, v_TGD, saved.Child(0)).view(q_TND.shape).MoveToOuterDisposeScope();

        var output = zeros(q_TND.shape, q_TND.dtype, q_TND.device);
        for (var i = 0; i < groups.Length; i++)
        {
            using var part = NewDisposeScope();
            Rows(output, groups[i]).copy_(RunGroup(Choose(q_TND, saved.Context, groups[i]), groups[i], q_TND, k_TGD, v_TGD, saved.Child(i)));
        }
        return output.MoveToOuterDisposeScope();
    }

    private static Tensor RunGroup(IAttentionKernel kernel, SegmentGroup group, Tensor q, Tensor k, Tensor v, Saved saved) =>
        kernel.Forward(group, new AttentionInputs(Rows(q, group), Rows(k, group), Rows(v, group)), saved);

    private void DropKernels(Saved saved)
    {
        for (var i = 0; i < Math.Max(1, plan.Length); i++) saved.Child(i).Drop();
    }

    /// <summary>
    /// One flash launch for the row: the choice for segments of several lengths on a GPU, because cuDNN would rebuild its plan for each
    /// length. Equal lengths go to cuDNN, which is nearly twice as fast at head size 128.
    /// </summary>
    private bool RunsPacked(Tensor q, ForwardContext context, SegmentGroup[] groups) =>
        MayFuse(context) && PackedFlashAttention.Supports(q)
        && (options.Backend == AttentionBackend.Flash || (options.Backend == AttentionBackend.Auto && (groups.Length != 1 || !CudnnAttention.Supports(q))));

    private bool MayFuse(ForwardContext context) =>
        options.Backend != AttentionBackend.Unfused && !options.QueryKeyLayerScaling && !(hasDropout && context.IsTraining);

    private IAttentionKernel Choose(Tensor q, ForwardContext context, SegmentGroup group)
    {
        if (options.Backend == AttentionBackend.Unfused || options.QueryKeyLayerScaling) return unfused;
        if (MayFuse(context) && FlashAttention.Supports(q)) return flash;
        if (MayFuse(context) && CudnnAttention.Supports(q)) return group.SeqLen > 1 ? cudnn : unfused; // cuDNN has no backward for one token
        if (options.Backend == AttentionBackend.Auto) return unfused;
        throw new InvalidOperationException(
            $"The flash kernel cannot compute attention of dtype {q.dtype} on {q.device.type} with dropout {(hasDropout ? "on" : "off")}.");
    }

    /// <summary>[T, heads, D] rows of a group as [B, S, heads, D], a view.</summary>
    private static Tensor Rows(Tensor x, SegmentGroup group)
    {
        var rows = group.Start == 0 && group.NumTokens == x.shape[0] ? x : x.narrow(0, group.Start, group.NumTokens);
        return rows.view(group.BatchSize, group.SeqLen, x.shape[1], x.shape[2]);
    }

    /// <summary>Groups of equal consecutive segments; remembered for the micro-batch, since every layer call asks.</summary>
    private SegmentGroup[] Plan(MicroBatch batch)
    {
        if (!ReferenceEquals(plannedBatch, batch)) (plannedBatch, plan) = (batch, SegmentPlan.Make(batch));
        return plan;
    }
}
