using TorchSharp;
using static TorchSharp.torch;

namespace Megatron.Compute.Distributed;

/// <summary>
/// The collectives of one rank in one group, run on the group's lane after all ranks have announced the same call. A reduction is a direct
/// exchange: the owner of a part receives it from every rank and combines them in rank order with <see cref="LoopbackMath.Reduce"/>. That
/// moves the same 2 (N-1)/N of the bytes as a ring, but gives the bits of the loopback backend, and 16-bit values are rounded once instead
/// of N-1 times.
/// </summary>
internal sealed unsafe class TcpCollectives(TcpRoster roster, TcpExchange exchange)
{
    /// <summary>Bytes of each peer's contribution that are held at a time.</summary>
    private const int SliceBytes = 1 << 20;

    /// <summary>Elements of one addition: below libtorch's grain size, so that it runs on this thread, and small enough for the cache.</summary>
    private const int GrainElements = 16_384;

    private readonly int rank = roster.Rank;
    private readonly int size = roster.GlobalRanks.Count;

    public void AllReduce(Tensor tensor, ReduceOp op, string title)
    {
        var flat = tensor.view(-1);
        var numElements = flat.numel();
        long StartOf(int part) => numElements * part / size;
        var own = flat.narrow(0, StartOf(rank), StartOf(rank + 1) - StartOf(rank));
        ReduceParts(own, flat, StartOf, op, title);
        var memory = MemoryOf(flat);
        var elementBytes = flat.element_size();
        foreach (var peer in Peers())
        {
            exchange.Send(peer, memory + StartOf(rank) * elementBytes, own.numel() * elementBytes);
            exchange.Receive(peer, memory + StartOf(peer) * elementBytes, (StartOf(peer + 1) - StartOf(peer)) * elementBytes);
        }
        exchange.Run(title);
    }

    public void ReduceScatter(Tensor output, Tensor input, ReduceOp op, string title)
    {
        var partElements = output.numel();
        ReduceParts(output.view(-1), input.view(-1), part => part * partElements, op, title);
    }

    public void AllGather(Tensor output, Tensor input, string title)
    {
        var source = MemoryOf(input);
        var target = MemoryOf(output);
        var partBytes = input.numel() * input.element_size();
        Copy(source, target + rank * partBytes, partBytes);
        foreach (var peer in Peers())
        {
            exchange.Send(peer, source, partBytes);
            exchange.Receive(peer, target + peer * partBytes, partBytes);
        }
        exchange.Run(title);
    }

    public void AllToAll(Tensor output, Tensor input, long[] outputSplits, long[] inputSplits, string title)
    {
        var rowBytes = input.shape.Skip(1).Aggregate(input.element_size(), (product, extent) => product * extent);
        var source = MemoryOf(input);
        var target = MemoryOf(output);
        long SourceOf(int peer) => inputSplits.Take(peer).Sum() * rowBytes;
        long TargetOf(int peer) => outputSplits.Take(peer).Sum() * rowBytes;
        Copy(source + SourceOf(rank), target + TargetOf(rank), inputSplits[rank] * rowBytes);
        foreach (var peer in Peers())
        {
            exchange.Send(peer, source + SourceOf(peer), inputSplits[peer] * rowBytes);
            exchange.Receive(peer, target + TargetOf(peer), outputSplits[peer] * rowBytes);
        }
        exchange.Run(title);
    }

    /// <summary>A chain from the root: each rank passes a slice on while it receives the next, so no rank sends the tensor twice.</summary>
    public void Broadcast(Tensor tensor, int root, string title)
    {
        var memory = MemoryOf(tensor);
        var totalBytes = tensor.numel() * tensor.element_size();
        var position = (rank - root + size) % size;
        var numSlices = (totalBytes + SliceBytes - 1) / SliceBytes;
        for (var step = 0L; step <= numSlices; step++)
        {
            if (position > 0 && step < numSlices) exchange.Receive((rank + size - 1) % size, memory + step * SliceBytes, BytesOf(step));
            if (position < size - 1 && step > 0) exchange.Send((rank + 1) % size, memory + (step - 1) * SliceBytes, BytesOf(step - 1));
            exchange.Run(title);
        }

        long BytesOf(long slice) => Math.Min(SliceBytes, totalBytes - slice * SliceBytes);
    }

    /// <summary>Address of a contiguous CPU tensor's first element; null for an empty one.</summary>
    public static byte* MemoryOf(Tensor tensor)
    {
        if (tensor.device_type != DeviceType.CPU) throw new InvalidOperationException($"The TCP backend moves CPU tensors only; this one is on {tensor.device}.");
        if (tensor.numel() == 0) return null;
        using var flat = tensor.view(-1);
        using var first = flat.narrow(0, 0, 1); // a span over all of it would end at 2 GiB
        fixed (byte* memory = first.bytes) return memory; // native memory: it does not move after the statement
    }

    /// <summary>Sends each part of <paramref name="input"/> to its owner and combines this rank's part in <paramref name="output"/>.</summary>
    private void ReduceParts(Tensor output, Tensor input, Func<int, long> startOf, ReduceOp op, string title)
    {
        var elementBytes = input.element_size();
        var sliceElements = SliceBytes / elementBytes;
        var ownElements = output.numel();
        var longest = Enumerable.Range(0, size).Max(part => startOf(part + 1) - startOf(part));
        var rowElements = Math.Min(sliceElements, ownElements);
        using var received_SX = empty([size, rowElements], dtype: input.dtype);
        var source = MemoryOf(input);
        var scratch = MemoryOf(received_SX);
        for (var offset = 0L; offset < longest; offset += sliceElements)
        {
            var numOwn = Math.Clamp(ownElements - offset, 0, sliceElements);
            foreach (var peer in Peers())
            {
                var numTheirs = Math.Clamp(startOf(peer + 1) - startOf(peer) - offset, 0, sliceElements);
                exchange.Send(peer, source + (startOf(peer) + offset) * elementBytes, numTheirs * elementBytes);
                exchange.Receive(peer, scratch + peer * rowElements * elementBytes, numOwn * elementBytes);
            }
            exchange.Run(title);
            for (var i = 0L; i < numOwn; i += GrainElements)
                Combine(output, input, received_SX, startOf(rank), offset, i, Math.Min(GrainElements, numOwn - i), op);
        }
    }

    private void Combine(Tensor output, Tensor input, Tensor received_SX, long ownStart, long offset, long i, long count, ReduceOp op)
    {
        using var scope = NewDisposeScope();
        var values = new Tensor[size];
        for (var source = 0; source < size; source++)
            values[source] = source == rank ? input.narrow(0, ownStart + offset + i, count) : received_SX[source].narrow(0, i, count);
        output.narrow(0, offset + i, count).copy_(LoopbackMath.Reduce(values, op));
    }

    /// <summary>The other ranks, beginning with the next one: not all ranks begin with the same.</summary>
    private IEnumerable<int> Peers() => Enumerable.Range(1, size - 1).Select(distance => (rank + distance) % size);

    private static void Copy(byte* source, byte* target, long sizeBytes)
    {
        if (sizeBytes > 0 && source != target) Buffer.MemoryCopy(source, target, sizeBytes, sizeBytes);
    }
}
