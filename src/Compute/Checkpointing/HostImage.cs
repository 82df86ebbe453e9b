using Megatron.Compute.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace Megatron.Compute.Checkpointing;

/// <summary>
/// A copy in host memory of what a rank writes, so that training goes on while it is written. The buffers stay for the next save; those of a
/// GPU are pinned, so that the copy runs at the speed of the bus.
/// </summary>
/// <remarks>
/// Belongs to the rank's thread. Between <see cref="Capture"/> and the end of the write the writer's thread alone reads the tensors of the content
/// that was returned, and the rank's thread leaves them alone: there is one image, and at most one save in flight.
/// </remarks>
public sealed class HostImage : IDisposable
{
    private readonly Device device;
    private readonly Dictionary<ScalarType, Tensor> buffers = [];

    // Without masters of their own the weights are named twice, as weights and as state: one copy serves both.
    private readonly Dictionary<Source, Tensor> copies = [];

    /// <param name="device">Where the values lie.</param>
    public HostImage(Device device) => this.device = device;

    /// <summary>Bytes of the buffers.</summary>
    public long SizeBytes => buffers.Values.Sum(buffer => buffer.numel() * buffer.element_size());

    /// <summary>Copies all values of <paramref name="content"/>; the previous copy is given up.</summary>
    /// <returns>The same content with values in host memory, complete when this returns.</returns>
    public RankContent Capture(RankContent content)
    {
        Release();
        Reserve(content.Weights.Select(weight => weight.Values).Concat(content.State.Select(slice => slice.Values)));
        var used = new Dictionary<ScalarType, long>();
        var copy = content with
        {
            Weights = [.. content.Weights.Select(weight => weight with { Values = Copy(weight.Values, used) })],
            State = [.. content.State.Select(slice => slice with { Values = Copy(slice.Values, used) })],
        };
        CudaDevices.Synchronize(device);
        return copy;
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        Release();
        foreach (var buffer in buffers.Values) buffer.Dispose();
        buffers.Clear();
    }

    private void Reserve(IEnumerable<Tensor> values)
    {
        foreach (var group in values.Select(Source.Of).Distinct().GroupBy(source => source.DType))
        {
            var needed = group.Sum(source => source.NumElements);
            if (buffers.TryGetValue(group.Key, out var old))
            {
                if (old.numel() >= needed) continue;
                old.Dispose();
            }
            buffers[group.Key] = Allocate(needed, group.Key, isPinned: device.type == DeviceType.CUDA);
        }
    }

    /// <summary>Room in host memory, not cleared, detached from every dispose scope.</summary>
    /// <param name="isPinned">A GPU reaches it at the speed of the bus.</param>
    internal static Tensor Allocate(long count, ScalarType dtype, bool isPinned)
    {
        var plain = empty(count, dtype: dtype, device: CPU);
        if (!isPinned) return plain.DetachFromDisposeScope();
        using (plain) return plain.pin_memory().DetachFromDisposeScope();
    }

    private Tensor Copy(Tensor values, Dictionary<ScalarType, long> used)
    {
        var source = Source.Of(values);
        if (copies.TryGetValue(source, out var copied)) return copied;
        var offset = used.GetValueOrDefault(source.DType);
        used[source.DType] = offset + source.NumElements;
        using var flat = values.reshape(-1);
        var view = buffers[source.DType].narrow(0, offset, source.NumElements).DetachFromDisposeScope();
        view.copy_(flat);
        return copies[source] = view;
    }

    private void Release()
    {
        foreach (var view in copies.Values) view.Dispose();
        copies.Clear();
    }

    /// <summary>Contiguous memory of the rank: what is read, whoever names it.</summary>
    private readonly record struct Source(nint Address, ScalarType DType, long NumElements)
    {
        public static Source Of(Tensor values) => values.is_contiguous()
            ? new(Dispatcher.DataPointer(values), values.dtype, values.numel())
            : throw new ArgumentException("What is saved lies in contiguous memory.", nameof(values));
    }
}
