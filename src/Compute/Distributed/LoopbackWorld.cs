namespace Megatron.Compute.Distributed;

/// <summary>
/// The meeting place of the ranks of one process: N ranks are N threads (DESIGN D5). Made once per attempt and handed to every rank;
/// nothing is static, so several worlds live side by side.
/// </summary>
public sealed class LoopbackWorld : IProcessGroupFactory
{
    private readonly Lock gate = new();
    private readonly Dictionary<string, LoopbackHub> hubs = [];
    private readonly TimeSpan timeout;
    private string? abortReason;

    /// <param name="timeout">How long one operation may wait for its peers (<c>--distributed_timeout_minutes</c>).</param>
    public LoopbackWorld(TimeSpan timeout) => this.timeout = timeout;

    /// <inheritdoc/>
    public ProcessGroup Create(string name, int globalRank, IReadOnlyList<int> members)
    {
        var key = $"{name}:{string.Join(',', members)}";
        lock (gate)
        {
            if (!hubs.TryGetValue(key, out var hub)) hubs[key] = hub = new LoopbackHub(name, members, timeout);
            if (abortReason is not null) hub.Abort(abortReason);
            return new LoopbackProcessGroup(hub, members.ToList().IndexOf(globalRank));
        }
    }

    /// <summary>Aborts every group of every rank; any thread may call it. The world cannot be used again.</summary>
    public void Abort(string reason)
    {
        lock (gate)
        {
            abortReason ??= reason;
            foreach (var hub in hubs.Values) hub.Abort(reason);
        }
    }
}
