using Megatron.Compute.Distributed;
using Megatron.Compute.Ops;
using static TorchSharp.torch;

namespace Megatron.Compute.Optimizers;

/// <summary>
/// Brings the main gradients of all replicas together, bucket by bucket. With overlap a bucket's reduction starts inside the backward, when
/// the last micro-batch has added its part to the last of the bucket's parameters; otherwise all start in <see cref="Finish"/>. The sums
/// are the same bits either way.
/// </summary>
/// <remarks>
/// Order (numerics 3.6): logical shards of this rank, replicas (reduce-scatter into this rank's shards when the optimizer is sharded, else
/// all-reduce), then inside the replica: over the TP group the gradients of parameters that saw a part of the tokens or heads, over the
/// embedding group those of tied weights. Nobody divides (DESIGN D8). Bytes sent by a rank, for P gradient elements of b bytes (4, or 2 with
/// <see cref="OptimizerOptions.ReduceIn16Bits"/>) in the buckets of a group of d replicas: sharded (d − 1)/d · P · b, else
/// 2 (d − 1)/d · P · b; then for the S elements of this rank's part of partial parameters 2 (t − 1)/t · S · 4 over a TP group of t, and for the
/// E of a tied weight 2 (e − 1)/e · E · 4 over an embedding group of e.
/// </remarks>
internal sealed class GradientReducer : IDisposable
{
    private readonly FlatLayout layout;
    private readonly GradientBuffer gradients;
    private readonly ParallelState parallel;
    private readonly OptimizerOptions options;
    private readonly BucketState[] buckets;
    private bool isArmed;

    private bool IsSharded => options.UseDistributedOptimizer && !options.OrderedReduction;

    /// <param name="layout">Order and offsets of <paramref name="gradients"/>.</param>
    public GradientReducer(FlatLayout layout, GradientBuffer gradients, ParallelState parallel, OptimizerOptions options)
    {
        (this.layout, this.gradients, this.parallel, this.options) = (layout, gradients, parallel, options);
        buckets = [.. layout.Buckets.Select(bucket => new BucketState(bucket))];
        if (!options.OverlapGradReduce || options.OrderedReduction) return;
        foreach (var state in buckets)
            foreach (var entry in state.Bucket.Entries)
                if (entry.Parameter.GradientSlot is { } slot) slot.Completed = () => Count(state);
    }

    /// <summary>Called before the first forward of a step, whose backward will complete every parameter's slot so many times.</summary>
    public void Begin(int numMicroBatches)
    {
        Abandon();
        isArmed = true;
        foreach (var state in buckets) state.NumMissing = numMicroBatches * state.Bucket.Entries.Count;
    }

    /// <summary>Starts what has not started, waits for all and completes the sums inside the replica.</summary>
    public void Finish()
    {
        using var scope = NewDisposeScope();
        isArmed = false;
        gradients.ReduceShards();
        for (var i = buckets.Length - 1; i >= 0; i--) Start(buckets[i]); // the last bucket's gradients come first
        for (var i = buckets.Length - 1; i >= 0; i--) Wait(buckets[i]);
        SumInsideReplica();
    }

    /// <summary>
    /// After <see cref="Finish"/>: brings the other replicas' shards into this rank's main gradients, so that they are whole. For verification;
    /// a step does not need it.
    /// </summary>
    public void Gather()
    {
        if (!IsSharded) return;
        using var scope = NewDisposeScope();
        foreach (var bucket in layout.Buckets)
            if (bucket.Replicas.Size > 1)
                bucket.Replicas.AllGather(Slice(bucket.Range), Slice(bucket.OwnedRange(isSharded: true))).Wait();
    }

    /// <inheritdoc/>
    public void Dispose() => Abandon();

    private void Count(BucketState state)
    {
        if (!isArmed) return;
        if (--state.NumMissing < 0)
            throw new InvalidOperationException($"Rank {parallel.Rank}: a gradient of bucket {state.Bucket.Range} was completed more often than there are micro-batches.");
        if (state.NumMissing > 0) return;
        using var scope = NewDisposeScope();
        Start(state);
    }

    private void Start(BucketState state)
    {
        var bucket = state.Bucket;
        if (state.IsStarted || bucket.Replicas.Size == 1) return;
        state.IsStarted = true;
        var whole = Slice(bucket.Range);
        if (options.OrderedReduction)
        {
            TreeReduction.AllReduce(whole, bucket.IsExpert ? bucket.Replicas : parallel.DataParallel);
            return;
        }
        if (options.ReduceIn16Bits is { } narrow) whole = (state.Narrow = whole.to_type(narrow).DetachFromDisposeScope()).alias();
        state.Work = IsSharded
            ? bucket.Replicas.ReduceScatter(OwnedPart(whole, bucket), whole, ReduceOp.Sum)
            : bucket.Replicas.AllReduce(whole, ReduceOp.Sum);
    }

    private void Wait(BucketState state)
    {
        state.Work?.Wait();
        if (state.Narrow is { } narrow) Slice(state.Bucket.OwnedRange(IsSharded)).copy_(IsSharded ? OwnedPart(narrow, state.Bucket) : narrow);
        state.Reset();
    }

    private void SumInsideReplica()
    {
        SumPartial(parallel.TensorParallel, traits => traits.IsSequenceParallel);
        if (options.OrderedReduction) SumPartial(parallel.ContextParallel, traits => !traits.IsExpert);
        SumPartial(parallel.Embedding, traits => traits.IsTied);
    }

    /// <summary>One all-reduce of this rank's elements of the chosen parameters, which are the same elements on all ranks of the group.</summary>
    private void SumPartial(ProcessGroup group, Func<ParameterTraits, bool> isChosen)
    {
        if (group.Size == 1) return;
        var parts = new List<Tensor>();
        foreach (var bucket in layout.Buckets)
            foreach (var entry in bucket.Entries)
                if (isChosen(entry.Parameter.Traits) && entry.Range.Intersect(bucket.OwnedRange(IsSharded)) is { Length: > 0 } range) parts.Add(Slice(range));
        if (parts.Count == 0) return;
        var packed = parts.Count == 1 ? parts[0] : cat(parts, 0);
        group.AllReduce(packed, ReduceOp.Sum).Wait();
        if (parts.Count == 1) return;
        var offset = 0L;
        foreach (var part in parts)
        {
            part.copy_(packed.narrow(0, offset, part.numel()));
            offset += part.numel();
        }
    }

    /// <summary>Forgets the reductions of a step that did not end.</summary>
    private void Abandon()
    {
        isArmed = false;
        foreach (var state in buckets)
        {
            try
            {
                state.Work?.Wait();
            }
            catch (RankFaultException)
            {
                // What ended the step is already on its way to the caller.
            }
            state.Reset();
        }
    }

    private Tensor Slice(FlatRange range) => gradients.Slice(range.Begin, range.Length);

    private static Tensor OwnedPart(Tensor whole, FlatBucket bucket)
    {
        var range = bucket.OwnedRange(isSharded: true);
        return whole.narrow(0, range.Begin - bucket.Range.Begin, range.Length);
    }

    /// <summary>Where a bucket stands in the step.</summary>
    private sealed class BucketState(FlatBucket bucket)
    {
        public FlatBucket Bucket => bucket;

        /// <summary>Completions of its parameters that are still to come.</summary>
        public int NumMissing { get; set; }

        public bool IsStarted { get; set; }

        public CollectiveWork? Work { get; set; }

        /// <summary>The bucket in 16 bits while it is reduced so.</summary>
        public Tensor? Narrow { get; set; }

        public void Reset()
        {
            Narrow?.Dispose();
            (IsStarted, Work, Narrow) = (false, null, null);
        }
    }
}
