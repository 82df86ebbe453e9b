using System.Diagnostics;
using System.Net.Sockets;

namespace Megatron.Compute.Distributed;

/// <summary>Bytes between memory and one peer, in one direction.</summary>
internal unsafe struct TcpSpan
{
    public required int Peer;
    public required bool IsSend;
    public required byte* Memory;
    public required long Left;
}

/// <summary>
/// Moves bytes straight between tensor memory and the sockets of several peers, in both directions at once: what one peer sends never has
/// to wait until another peer reads. Used by one thread at a time.
/// </summary>
internal sealed unsafe class TcpExchange(TcpRoster roster, Socket?[] sockets)
{
    private const int MaxPerCall = 4 << 20;

    /// <summary>How soon a fault that another thread found is noticed while nothing moves.</summary>
    private static readonly TimeSpan PollInterval = TimeSpan.FromMilliseconds(50);

    private readonly List<TcpSpan> spans = [];
    private readonly List<Socket> readable = [];
    private readonly List<Socket> writable = [];

    public void Send(int peer, byte* memory, long sizeBytes) => Add(new TcpSpan { Peer = peer, IsSend = true, Memory = memory, Left = sizeBytes });

    public void Receive(int peer, byte* memory, long sizeBytes) => Add(new TcpSpan { Peer = peer, IsSend = false, Memory = memory, Left = sizeBytes });

    /// <summary>Completes everything added since the last run; at most one send and one receive for each peer.</summary>
    /// <exception cref="RankFaultException">The group ended, a peer is gone, or nothing moved for the group's timeout.</exception>
    public void Run(string title)
    {
        var lastProgress = Stopwatch.GetTimestamp();
        while (spans.Count > 0)
        {
            roster.ThrowIfFaulted();
            var hasMoved = false;
            for (var i = spans.Count - 1; i >= 0; i--)
            {
                var span = spans[i];
                hasMoved |= Move(ref span);
                if (span.Left > 0) spans[i] = span;
                else spans.RemoveAt(i);
            }
            if (hasMoved) lastProgress = Stopwatch.GetTimestamp();
            else if (Stopwatch.GetElapsedTime(lastProgress) > roster.Timeout) throw roster.TimeoutOf(title, spans.Select(span => span.Peer).Distinct().Order());
            else AwaitSockets();
        }
    }

    private void Add(TcpSpan span)
    {
        if (span.Left > 0) spans.Add(span);
    }

    private bool Move(ref TcpSpan span)
    {
        var socket = SocketOf(span.Peer);
        var hasMoved = false;
        while (span.Left > 0)
        {
            var bytes = new Span<byte>(span.Memory, (int)Math.Min(span.Left, MaxPerCall));
            SocketError error;
            var count = span.IsSend ? socket.Send(bytes, SocketFlags.None, out error) : socket.Receive(bytes, SocketFlags.None, out error);
            if (error == SocketError.WouldBlock) break;
            if (error != SocketError.Success || count == 0) throw roster.AwaitFaultOf(span.Peer);
            span.Memory += count;
            span.Left -= count;
            hasMoved = true;
        }
        return hasMoved;
    }

    private void AwaitSockets()
    {
        readable.Clear();
        writable.Clear();
        foreach (var span in spans) (span.IsSend ? writable : readable).Add(SocketOf(span.Peer));
        Socket.Select(readable.Count > 0 ? readable : null, writable.Count > 0 ? writable : null, null, PollInterval);
    }

    private Socket SocketOf(int peer) => sockets[peer] ?? throw new InvalidOperationException($"Rank {peer} of group {roster.Name} has no connection to itself.");
}
