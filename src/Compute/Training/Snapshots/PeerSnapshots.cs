using System.Runtime.InteropServices;
using Megatron.Compute.Checkpointing;
using Megatron.Compute.Distributed;
using Megatron.Compute.Native;
using static TorchSharp.torch;

namespace Megatron.Compute.Training.Snapshots;

/// <summary>
/// A rank's side of snapshots in memory (DESIGN D13): after a step it copies its state to the host and starts to send it to a rank on another node;
/// one step later the copy has gone and all ranks agree that they have what they need, before any of them reports that step. So no reported step but
/// those since the newest snapshot is ever lost.
/// </summary>
/// <remarks>Belongs to the rank's thread. All methods are entered by all ranks at the same step.</remarks>
internal sealed class PeerSnapshots : IDisposable
{
    private readonly PeerSnapshotStore store;
    private readonly ProcessGroup world;
    private readonly PeerLinks links;
    private readonly Device device;
    private IReadOnlyList<SnapshotSlice> ownLayout = [];
    private IReadOnlyList<SnapshotSlice[]> peerLayouts = [];
    private Pending? pending;

    /// <param name="store">Keeps the copies.</param>
    /// <param name="world">All ranks.</param>
    /// <param name="links">Ways to the peers; the caller's.</param>
    /// <param name="device">Where the state lies.</param>
    public PeerSnapshots(PeerSnapshotStore store, ProcessGroup world, PeerLinks links, Device device) =>
        (this.store, this.world, this.links, this.device) = (store, world, links, device);

    /// <summary>As <see cref="PeerLinks.BlockedTime"/>; waiting for all ranks to agree is in that of their group.</summary>
    public TimeSpan BlockedTime => links.BlockedTime;

    /// <summary>
    /// Called before the first step: tells the peers what lies where in a copy, which does not change during an attempt, and makes room for two, because
    /// memory that a GPU reaches must not be asked for while ranks communicate.
    /// </summary>
    /// <param name="jobId">The job.</param>
    /// <param name="state">The rank's slices.</param>
    public void Prepare(string jobId, IReadOnlyList<StateSlice> state)
    {
        ownLayout = [.. state.Select(slice => new SnapshotSlice(slice.Block, slice.Kind, slice.Begin, slice.End))];
        peerLayouts = ExchangeLayouts(ownLayout);
        store.Reserve(jobId, CountOf(ownLayout), IsPinned);
        store.Reserve(jobId, CountOf(ownLayout), IsPinned);
    }

    /// <summary>Copies the state as it is now and starts to exchange it. The one before is complete.</summary>
    /// <param name="run">What it is.</param>
    /// <param name="state">The rank's slices, those of <see cref="Prepare"/> in their order.</param>
    /// <returns>Bytes of the rank's own copy.</returns>
    public long Take(SnapshotRun run, IReadOnlyList<StateSlice> state)
    {
        if (pending is not null) throw new InvalidOperationException($"Rank {world.Rank}: the snapshot before that of step {run.Key.Iteration} is not complete.");
        var own = new RankSnapshot(world.Rank, ownLayout, Copy(run, state));
        store.Add(run, own);
        RankSnapshot[] arriving = [.. peerLayouts.Select((layout, i) => new RankSnapshot(links.Senders[i], layout, store.Rent(run.Facts.JobId, CountOf(layout), isPinned: false)))];
        pending = new Pending(run, new Queue<RankSnapshot>(arriving), links.Exchange(own.Values, [.. arriving.Select(part => part.Values)]));
        return own.Values.numel() * sizeof(float);
    }

    /// <summary>Waits until every rank has the newest snapshot and its peers' parts of it; does nothing when they have.</summary>
    /// <exception cref="RankFaultException">A peer is lost.</exception>
    public void Complete()
    {
        if (pending is not { } newest) return;
        foreach (var work in newest.Works) work.Wait();
        while (newest.Arriving.TryDequeue(out var part)) store.Add(newest.Run, part);
        pending = null;
        world.Barrier();
        world.ThrowIfFaulted();
        store.DropOlder(newest.Run);
    }

    /// <summary>Gives up what has not arrived. The store keeps the rest.</summary>
    public void Dispose()
    {
        while (pending?.Arriving.TryDequeue(out var part) == true) part.Values.Dispose();
        pending = null;
    }

    private Tensor Copy(SnapshotRun run, IReadOnlyList<StateSlice> state)
    {
        var values = store.Rent(run.Facts.JobId, CountOf(ownLayout), IsPinned);
        var offset = 0L;
        foreach (var slice in state)
        {
            using var room = values.narrow(0, offset, slice.End - slice.Begin);
            room.copy_(slice.Values, nonBlocking: IsPinned);
            offset += slice.End - slice.Begin;
        }
        CudaDevices.Synchronize(device);
        return values;
    }

    private IReadOnlyList<SnapshotSlice[]> ExchangeLayouts(IReadOnlyList<SnapshotSlice> own)
    {
        using var scope = NewDisposeScope();
        var text = ToWords(StrictJson.Write(own));
        Tensor[] sizes = [.. links.Senders.Select(_ => zeros(1, dtype: int64))];
        Wait(links.Exchange(tensor(new[] { text.numel() }, dtype: int64), sizes));
        Tensor[] texts = [.. sizes.Select(size => zeros(size.item<long>(), dtype: int64))];
        Wait(links.Exchange(text, texts));
        return [.. texts.Select((words, i) => StrictJson.Parse<SnapshotSlice[]>(MemoryMarshal.AsBytes(words.data<long>().ToArray().AsSpan()), "CKPT010", $"the layout of rank {links.Senders[i]}"))];
    }

    /// <summary>JSON with spaces at its end, because groups move numbers.</summary>
    private static Tensor ToWords(byte[] json)
    {
        byte[] padded = [.. json, .. Enumerable.Repeat((byte)' ', -json.Length & 7)];
        return tensor(MemoryMarshal.Cast<byte, long>(padded).ToArray(), dtype: int64);
    }

    private static void Wait(IReadOnlyList<CollectiveWork> works)
    {
        foreach (var work in works) work.Wait();
    }

    private bool IsPinned => device.type == TorchSharp.DeviceType.CUDA;

    private static long CountOf(IReadOnlyList<SnapshotSlice> layout) => layout.Sum(slice => slice.Count);

    /// <summary>A snapshot on its way.</summary>
    private sealed record Pending(SnapshotRun Run, Queue<RankSnapshot> Arriving, IReadOnlyList<CollectiveWork> Works);
}
