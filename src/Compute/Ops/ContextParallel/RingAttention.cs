using Megatron.Compute.Distributed;
using static TorchSharp.torch;

namespace Megatron.Compute.Ops.ContextParallel;

/// <summary>
/// Attention over a context-parallel group by passing keys and values round the ring (arXiv 2310.01889) with zig-zag chunks, so that every
/// rank computes half of each pair: one causal block of its own and cp − 1 unmasked half blocks. The next rank's keys travel while the
/// present ones are used. The backward goes round again; gradients of keys and values travel with one step's delay, each rank adding its share, and end at
/// their owner.
/// </summary>
/// <remarks>
/// Bytes that a rank sends for one layer and micro-batch, T tokens on the rank, e bytes per element, w = 4 (8 for fp64) bytes per element of a
/// gradient: forward (cp − 1)·2·T·G·D·e, backward (cp − 1)·2·T·G·D·(e + w). Sums run in the order of the ring: the same bits in every
/// run. Shape letters: T tokens of this rank, N query heads, G key/value heads, D channels of a head.
/// </remarks>
public sealed class RingAttention : ICoreAttention
{
    private const int Query = 0, Key = 1, Value = 2, Output = 3, LogSumExp = 4;

    private readonly AttentionOptions options;
    private readonly ProcessGroup group;
    private readonly bool recompute;
    private readonly bool hasDropout;
    private readonly GroupedRingKernel unfused;
    private readonly GroupedRingKernel flash;
    private readonly PackedRingKernel packed;

    /// <param name="shape">This rank's heads: context parallelism splits tokens, not heads.</param>
    /// <param name="dropout">Probability of dropping an attention weight in training.</param>
    /// <param name="seed">The run's seed.</param>
    /// <param name="recompute">Keep only q, k and v and go round the ring once more in the backward.</param>
    /// <param name="group">The context-parallel group.</param>
    public RingAttention(AttentionShape shape, AttentionOptions options, double dropout, long seed, bool recompute, ProcessGroup group)
    {
        (this.options, this.group, this.recompute, hasDropout) = (options, group, recompute, dropout > 0);
        unfused = new GroupedRingKernel(new UnfusedBlockAttention(shape, options, dropout, seed), group.Size);
        flash = new GroupedRingKernel(new FlashBlockAttention(shape), group.Size);
        packed = new PackedRingKernel(shape);
    }

    /// <inheritdoc/>
    public Tensor Forward(Tensor q_TND, Tensor k_TGD, Tensor v_TGD, Saved saved)
    {
        using var scope = NewDisposeScope();
        saved.Keep(Query, q_TND);
        saved.Keep(Key, k_TGD);
        saved.Keep(Value, v_TGD);
        var (output, logSumExp) = Attend(new AttentionInputs(q_TND, k_TGD, v_TGD), saved.Context);
        if (!recompute)
        {
            saved.Keep(Output, output);
            saved.Keep(LogSumExp, logSumExp);
        }
        return output.MoveToOuterDisposeScope();
    }

    /// <inheritdoc/>
    public AttentionGradients Backward(Tensor gradOutput_TND, Saved saved)
    {
        using var scope = NewDisposeScope();
        var inputs = new AttentionInputs(saved.Take(Query), saved.Take(Key), saved.Take(Value));
        var (output, logSumExp) = recompute ? Attend(inputs, saved.Context) : (saved.Take(Output), saved.Take(LogSumExp));
        var sums = Differentiate(inputs, new AttentionResult(gradOutput_TND, output, logSumExp), saved.Context);
        return new AttentionGradients(Narrow(sums.Query), Narrow(sums.Key), Narrow(sums.Value));

        Tensor Narrow(Tensor sum) => sum.to_type(inputs.Query.dtype).MoveToOuterDisposeScope();
    }

    /// <summary>Output [T, N, D] in the dtype of the query and log-sum-exp [T, N] over the keys of all ranks.</summary>
    private (Tensor Output, Tensor LogSumExp) Attend(AttentionInputs inputs, ForwardContext context)
    {
        using var scope = NewDisposeScope();
        var (query, kernel) = (inputs.Query, Choose(inputs.Query, context));
        var wide = WideDtype(query);
        var sums = new RingSums(zeros(query.shape, wide, query.device), zeros(query.shape[..2], wide, query.device));
        var travelling = stack([inputs.Key, inputs.Value], 0);
        for (var step = 0; step < group.Size; step++)
        {
            var pass = StartPass(step, travelling);
            using (NewDisposeScope())
                kernel.Forward(RingStep.Of(step, group.Rank, group.Size), WithKeys(query, travelling), sums, context);
            travelling = Advance(pass, travelling);
        }
        return (sums.Output.to_type(query.dtype).MoveToOuterDisposeScope(), sums.LogSumExp.MoveToOuterDisposeScope());
    }

    /// <summary>The gradients as sums in fp32 or fp64.</summary>
    private AttentionGradients Differentiate(AttentionInputs inputs, AttentionResult result, ForwardContext context)
    {
        using var scope = NewDisposeScope();
        var (query, kernel) = (inputs.Query, Choose(inputs.Query, context));
        var gradQuery = zeros(query.shape, WideDtype(query), query.device);
        var travelling = stack([inputs.Key, inputs.Value], 0);
        var own = zeros(travelling.shape, WideDtype(query), query.device); // [2, T, G, D]
        RingPass? gradientPass = null;
        Tensor? sent = null;
        for (var step = 0; step < group.Size; step++)
        {
            var pass = StartPass(step, travelling);
            var share = step == 0 ? own : zeros_like(own);
            using (NewDisposeScope())
                kernel.Backward(
                    RingStep.Of(step, group.Rank, group.Size), WithKeys(query, travelling), result,
                    new AttentionGradients(gradQuery, share.select(0, 0), share.select(0, 1)), context);
            if (step > 0)
            {
                // What the ranks before this one added to the same keys has come in while this step was computed.
                AddArrived(share, gradientPass, sent);
                (gradientPass, sent) = (RingPass.Start(group, share), share);
            }
            travelling = Advance(pass, travelling);
        }
        AddArrived(own, gradientPass, sent);
        return new AttentionGradients(
            gradQuery.MoveToOuterDisposeScope(), own.select(0, 0).MoveToOuterDisposeScope(), own.select(0, 1).MoveToOuterDisposeScope());
    }

    private RingPass? StartPass(int step, Tensor travelling) => step + 1 < group.Size ? RingPass.Start(group, travelling) : null;

    /// <summary>Frees what has been used and sent, so that two blocks exist at a time.</summary>
    private static Tensor Advance(RingPass? pass, Tensor travelling)
    {
        if (pass is null) return travelling;
        var next = pass.Complete();
        travelling.Dispose();
        return next;
    }

    private static void AddArrived(Tensor sum, RingPass? pass, Tensor? sent)
    {
        if (pass is null) return;
        using var arrived = pass.Complete();
        sum.add_(arrived);
        sent?.Dispose();
    }

    private static AttentionInputs WithKeys(Tensor query, Tensor keyValue) => new(query, keyValue.select(0, 0), keyValue.select(0, 1));

    private IRingKernel Choose(Tensor query, ForwardContext context)
    {
        if (options.Backend == AttentionBackend.Unfused || options.QueryKeyLayerScaling || (hasDropout && context.IsTraining)) return unfused;
        if (PackedFlashAttention.Supports(query)) return packed;
        if (FlashAttention.Supports(query)) return flash;
        if (options.Backend == AttentionBackend.Auto) return unfused;
        throw new InvalidOperationException($"No {options.Backend} kernel gives the log-sum-exp of {query.dtype} on {query.device.type}, which ring attention needs.");
    }

    private static ScalarType WideDtype(Tensor x) => x.dtype == ScalarType.Float64 ? ScalarType.Float64 : ScalarType.Float32;
}
