using Megatron.Compute.Checkpointing;
using Megatron.Compute.Distributed;
using static TorchSharp.torch;

namespace Megatron.Compute.Training.Snapshots;

/// <summary>
/// Snapshots in the memory of this process: of each job the newest one that every rank holds twice, and the one in the making. It outlives the
/// ranks, which start anew after a fault. A part is added when it is whole and never changes, so a snapshot of which every part is found somewhere
/// is usable, whether or not anybody came to say so; that all ranks have theirs decides only when the older one is given up.
/// </summary>
/// <remarks>Everything happens under one lock but the writing, which holds aliases of the values.</remarks>
public sealed class PeerSnapshotStore : ISnapshotHolder, IDisposable
{
    private readonly Lock gate = new();
    private readonly Dictionary<string, JobSnapshots> jobs = new(StringComparer.Ordinal);
    private readonly TimeProvider time;
    private readonly SideEffectFence fence;

    /// <param name="time">Gives the creation time in manifests.</param>
    /// <param name="fence">Asked right before each file operation.</param>
    public PeerSnapshotStore(TimeProvider time, SideEffectFence fence) => (this.time, this.fence) = (time, fence);

    /// <inheritdoc/>
    public IReadOnlyList<SnapshotHolding> Find(string jobId)
    {
        lock (gate)
        {
            if (!jobs.TryGetValue(jobId, out var job)) return [];
            return [.. job.Snapshots.Select(pair => new SnapshotHolding(pair.Key.Attempt, pair.Key.Iteration, pair.Value.Run.WorldSize, [.. pair.Value.Parts.Keys]))];
        }
    }

    /// <inheritdoc/>
    public Task<IReadOnlyList<CheckpointReceipt>> Write(SnapshotOrder order)
    {
        lock (gate) return Of(order.Attempt.JobId).Once($"write {order.Name}", () => StartWrite(order));
    }

    /// <inheritdoc/>
    public Task<string> Commit(SnapshotOrder order, IReadOnlyList<CheckpointReceipt> receipts)
    {
        lock (gate) return Of(order.Attempt.JobId).Once($"commit {order.Name}", () => StartCommit(order, receipts));
    }

    /// <inheritdoc/>
    public void Discard(string jobId, int attempt)
    {
        lock (gate)
        {
            if (!jobs.TryGetValue(jobId, out var job)) return;
            job.Close(attempt);
            job.Orders.Clear();
            foreach (var key in job.Snapshots.Keys.Where(key => key.Attempt < attempt).ToList()) job.Free(key, isReused: false);
            if (job.Snapshots.Count > 0) return;
            job.Dispose();
            if (attempt == int.MaxValue) jobs.Remove(jobId);
        }
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        lock (gate)
        {
            foreach (var job in jobs.Values) job.Dispose();
            jobs.Clear();
        }
    }

    /// <summary>Room for a part's values, not cleared: that of a snapshot which was given up, if there is one of this size.</summary>
    /// <param name="isPinned">For copies from a GPU.</param>
    internal Tensor Rent(string jobId, long count, bool isPinned)
    {
        lock (gate)
            if (Of(jobId).Rooms.TryGetValue((count, isPinned), out var rooms) && rooms.TryPop(out var room)) return room;
        return HostImage.Allocate(count, float32, isPinned);
    }

    /// <summary>Makes room for one part, to be rented later.</summary>
    internal void Reserve(string jobId, long count, bool isPinned)
    {
        var room = HostImage.Allocate(count, float32, isPinned);
        lock (gate) Of(jobId).Keep(room, isPinned);
    }

    /// <summary>Takes over a part that is whole.</summary>
    /// <exception cref="RankFaultException">The attempt is over, and the caller a thread that was left behind; the part is freed.</exception>
    internal void Add(SnapshotRun run, RankSnapshot part)
    {
        lock (gate)
        {
            var job = Of(run.Facts.JobId);
            if (run.Key.Attempt < job.FirstAttempt)
            {
                part.Values.Dispose();
                throw new RankFaultException(FormattableString.Invariant($"Attempt {run.Key.Attempt} of job {run.Facts.JobId} is over: its snapshots are being written for the next one."));
            }
            if (!job.Snapshots.TryGetValue(run.Key, out var snapshot)) job.Snapshots[run.Key] = snapshot = new Snapshot(run);
            snapshot.Parts.Add(part.Rank, part);
        }
    }

    /// <summary>Called when every rank has its own part of a snapshot and those of its peers: what is older is not needed any more.</summary>
    internal void DropOlder(SnapshotRun run)
    {
        lock (gate)
        {
            var job = Of(run.Facts.JobId);
            if (run.Key.Attempt < job.FirstAttempt) return; // what is there is being written
            foreach (var key in job.Snapshots.Keys.TakeWhile(key => key.CompareTo(run.Key) < 0).ToList()) job.Free(key, isReused: true);
        }
    }

    private Task<IReadOnlyList<CheckpointReceipt>> StartWrite(SnapshotOrder order)
    {
        var (run, parts) = Borrow(order);
        return OnOwnThread($"write {order.SaveId}", () =>
        {
            try
            {
                return WriteParts(order, run, parts);
            }
            finally
            {
                foreach (var (_, values) in parts) values.Dispose();
            }
        });
    }

    private Task<string> StartCommit(SnapshotOrder order, IReadOnlyList<CheckpointReceipt> receipts)
    {
        var run = Require(order).Run;
        var facts = run.Facts with { Attempt = order.Attempt.Attempt };
        RankPart[] parts = [.. receipts.Select(receipt => new RankPart(receipt.Rank, receipt.Files, receipt.ManifestPart))];
        return OnOwnThread($"commit {order.SaveId}", () => FilesOf(run).Commit(order.SaveId, facts, parts).Folder);
    }

    private IReadOnlyList<CheckpointReceipt> WriteParts(SnapshotOrder order, SnapshotRun run, IReadOnlyList<(RankSnapshot Part, Tensor Values)> parts)
    {
        using var scope = NewDisposeScope();
        var sizeBytes = parts.Sum(part => part.Values.numel()) * sizeof(float) * run.WorldSize / Math.Max(1, parts.Count);
        var folder = FilesOf(run).BeginSave(order.Attempt.Attempt, order.SaveId, sizeBytes);
        return [.. parts.Select(item =>
        {
            fence.Check();
            var written = CheckpointWriter.WriteRank(folder, item.Part.Rank, new RankContent
            {
                ModelPlan = run.ModelPlan,
                WritesWeights = false,
                Weights = [],
                State = item.Part.StateIn(item.Values),
                SideFiles = item.Part.Rank == 0 ? run.SideFiles : null,
            });
            return new CheckpointReceipt(order.Attempt, written.Rank, order.SaveId, order.Iteration, written.Files, written.ManifestPart);
        })];
    }

    private (SnapshotRun Run, IReadOnlyList<(RankSnapshot Part, Tensor Values)> Parts) Borrow(SnapshotOrder order)
    {
        lock (gate)
        {
            var snapshot = Require(order);
            Of(order.Attempt.JobId).Close(order.Attempt.Attempt);
            return (snapshot.Run, [.. order.Ranks.Select(rank => snapshot.Parts[rank]).Select(part => (part, part.Values.alias().DetachFromDisposeScope()))]);
        }
    }

    private Snapshot Require(SnapshotOrder order) =>
        jobs.TryGetValue(order.Attempt.JobId, out var job) && job.Snapshots.TryGetValue((order.FromAttempt, order.Iteration), out var snapshot) && order.Ranks.All(snapshot.Parts.ContainsKey)
            ? snapshot
            : throw new InvalidOperationException(FormattableString.Invariant($"the snapshot of step {order.Iteration} is not here any more"));

    private CheckpointStore FilesOf(SnapshotRun run) => new(run.Root, time, _ => fence.Check());

    private JobSnapshots Of(string jobId) => jobs.TryGetValue(jobId, out var job) ? job : jobs[jobId] = new JobSnapshots();

    private static Task<T> OnOwnThread<T>(string name, Func<T> work)
    {
        var result = new TaskCompletionSource<T>(TaskCreationOptions.RunContinuationsAsynchronously);
        new Thread(() =>
        {
            try
            {
                result.SetResult(work());
            }
            catch (Exception exception)
            {
                result.SetException(exception);
            }
        })
        { IsBackground = true, Name = name }.Start();
        return result.Task;
    }

    /// <summary>The parts of one step.</summary>
    private sealed class Snapshot(SnapshotRun run)
    {
        public SnapshotRun Run { get; } = run;

        public SortedDictionary<int, RankSnapshot> Parts { get; } = [];
    }

    private sealed class JobSnapshots : IDisposable
    {
        public SortedDictionary<(int Attempt, long Iteration), Snapshot> Snapshots { get; } = [];

        /// <summary>Values of parts that were given up, for the next ones.</summary>
        public Dictionary<(long Count, bool IsPinned), Stack<Tensor>> Rooms { get; } = [];

        /// <summary>What was asked for since the last attempt started.</summary>
        public Dictionary<string, Task> Orders { get; } = new(StringComparer.Ordinal);

        /// <summary>A job whose grain has moved asks again for what is under way: two writers of one file would spoil it. What has failed is tried again.</summary>
        public Task<T> Once<T>(string name, Func<Task<T>> start)
        {
            if (Orders.TryGetValue(name, out var known) && !known.IsFaulted) return (Task<T>)known;
            var started = start();
            Orders[name] = started;
            return started;
        }

        /// <summary>Attempts before it are over: a thread of theirs that is still alive changes nothing.</summary>
        public int FirstAttempt { get; private set; }

        public void Close(int firstAttempt) => FirstAttempt = Math.Max(FirstAttempt, firstAttempt);

        public void Free((int, long) key, bool isReused)
        {
            foreach (var part in Snapshots[key].Parts.Values)
            {
                if (isReused) Keep(part.Values, part.Values.is_pinned());
                else part.Values.Dispose();
            }
            Snapshots.Remove(key);
        }

        public void Keep(Tensor room, bool isPinned)
        {
            if (!Rooms.TryGetValue((room.numel(), isPinned), out var rooms)) Rooms[(room.numel(), isPinned)] = rooms = [];
            rooms.Push(room);
        }

        public void Dispose()
        {
            foreach (var key in Snapshots.Keys.ToList()) Free(key, isReused: false);
            foreach (var room in Rooms.Values.SelectMany(rooms => rooms)) room.Dispose();
            Rooms.Clear();
        }
    }
}
