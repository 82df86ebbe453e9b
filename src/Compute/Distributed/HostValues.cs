using static TorchSharp.torch;

namespace Megatron.Compute.Distributed;

/// <summary>
/// Small numbers of the host that all ranks of a group must hold alike: sums for reports, and decisions that every rank must take at the
/// same step. Each call waits for the device, so none belongs inside the step.
/// </summary>
public static class HostValues
{
    /// <summary>Sums over the group, the same bits on every rank.</summary>
    public static double[] Sum(ProcessGroup group, Device device, params double[] values)
    {
        if (group.Size == 1) return values;
        using var scope = NewDisposeScope();
        var sums = tensor(values, dtype: float64, device: device);
        group.AllReduce(sums, ReduceOp.Sum).Wait();
        var totals = sums.cpu().data<double>().ToArray();
        group.ThrowIfFaulted();
        return totals;
    }

    /// <summary>True on every rank when it is true on one.</summary>
    public static bool Any(ProcessGroup group, Device device, bool value) => Sum(group, device, value ? 1 : 0)[0] > 0;

    /// <summary>The value that the group's first rank holds; the others' are ignored.</summary>
    public static long FromFirst(ProcessGroup group, Device device, long value)
    {
        if (group.Size == 1) return value;
        using var scope = NewDisposeScope();
        var shared = tensor(new[] { value }, dtype: int64, device: device);
        group.Broadcast(shared, 0).Wait();
        var first = shared.cpu().item<long>();
        group.ThrowIfFaulted();
        return first;
    }
}
