using System.Diagnostics;
using System.Net.Sockets;

namespace Megatron.Compute.Distributed;

/// <summary>
/// The control connections of one rank in one group. A thread of its own reads them all the time and fills the roster, so a dead peer or
/// an abort is known at once, whatever the rank and its lanes are doing.
/// </summary>
internal sealed class TcpControl
{
    private static readonly TimeSpan PollInterval = TimeSpan.FromMilliseconds(500);

    /// <summary>How long a rank that left keeps its sockets for peers that still read what it sent.</summary>
    private static readonly TimeSpan Linger = TimeSpan.FromSeconds(10);

    /// <summary>A peer whose control connection is full for this long hears no abort: it will see the connection end.</summary>
    private static readonly TimeSpan AbortPatience = TimeSpan.FromMilliseconds(200);

    private readonly TcpRoster roster;
    private readonly Peer[] peers;
    private readonly Action closeSockets;
    private readonly ManualResetEventSlim closed = new();
    private readonly Thread thread;

    /// <param name="sockets">By rank in the group; null for this rank itself.</param>
    /// <param name="closeSockets">Called at the very end: closes every socket of the group.</param>
    public TcpControl(TcpRoster roster, Socket?[] sockets, Action closeSockets)
    {
        (this.roster, this.closeSockets) = (roster, closeSockets);
        var bufferLength = 4 + TcpFrame.MaxLength(sockets.Length);
        peers = [.. sockets.Select((socket, rank) => (socket, rank)).Where(pair => pair.socket is not null)
            .Select(pair => new Peer(pair.rank, pair.socket ?? throw new InvalidOperationException("no socket"), new byte[bufferLength]))];
        thread = new Thread(Read) { IsBackground = true, Name = $"{roster.Name} control" };
    }

    /// <summary>Begins to read.</summary>
    public void Start() => thread.Start();

    /// <summary>Sends a message to every peer.</summary>
    public void TellAll(TcpFrame frame)
    {
        var bytes = frame.ToBytes();
        foreach (var peer in peers) Write(peer, bytes, frame.Kind);
    }

    /// <summary>Sends a message to one peer. A connection that has broken is not an error here: the reading thread reports it.</summary>
    public void Tell(int rank, TcpFrame frame) => Write(Array.Find(peers, peer => peer.Rank == rank) ?? throw new ArgumentOutOfRangeException(nameof(rank)), frame.ToBytes(), frame.Kind);

    /// <summary>
    /// Sends no more. The sockets are closed when every peer has closed its own, or after a while: closing at once would let the kernel
    /// throw away what peers have not read yet.
    /// </summary>
    public void Close()
    {
        foreach (var peer in peers)
            lock (peer)
                try
                {
                    peer.IsBroken = true;
                    peer.Socket.Shutdown(SocketShutdown.Send);
                }
                catch (SocketException)
                {
                    // The peer has ended the connection already.
                }
        closed.Set();
    }

    private void Write(Peer peer, byte[] bytes, TcpFrameKind kind)
    {
        var started = Stopwatch.GetTimestamp();
        lock (peer)
        {
            var numSent = 0;
            while (!peer.IsBroken && numSent < bytes.Length)
            {
                numSent += peer.Socket.Send(bytes.AsSpan(numSent), SocketFlags.None, out var error);
                if (error == SocketError.WouldBlock)
                {
                    var isHopeless = kind == TcpFrameKind.Abort ? Stopwatch.GetElapsedTime(started) > AbortPatience : roster.IsFaulted;
                    if (!isHopeless) peer.Socket.Poll(TimeSpan.FromMilliseconds(50), SelectMode.SelectWrite);
                    else peer.IsBroken = true; // a frame may be cut off: nothing can follow it
                }
                else if (error != SocketError.Success) peer.IsBroken = true;
            }
        }
    }

    private void Read()
    {
        var open = peers.ToList();
        var readable = new List<Socket>();
        long? closedAt = null;
        while (open.Count > 0)
        {
            if (closed.IsSet && Stopwatch.GetElapsedTime(closedAt ??= Stopwatch.GetTimestamp()) > Linger) break;
            readable.Clear();
            readable.AddRange(open.Select(peer => peer.Socket));
            Socket.Select(readable, null, null, PollInterval);
            foreach (var peer in open.ToArray())
                if (readable.Contains(peer.Socket) && !ReadFrom(peer)) open.Remove(peer);
        }
        closed.Wait();
        closeSockets();
    }

    /// <summary>Takes what has arrived; false when nothing more can come.</summary>
    private bool ReadFrom(Peer peer)
    {
        var count = peer.Socket.Receive(peer.Buffer.AsSpan(peer.NumBuffered), SocketFlags.None, out var error);
        if (error == SocketError.WouldBlock) return true;
        if (error != SocketError.Success || count == 0)
        {
            roster.Lose(peer.Rank, error == SocketError.Success ? "it closed the connection" : $"{error}");
            return false;
        }
        peer.NumBuffered += count;
        try
        {
            var numTaken = 0;
            while (TcpFrame.Parse(peer.Buffer.AsSpan(numTaken, peer.NumBuffered - numTaken), roster.GlobalRanks.Count, out var taken) is { } frame)
            {
                roster.Deliver(peer.Rank, frame);
                numTaken += taken;
            }
            peer.Buffer.AsSpan(numTaken, peer.NumBuffered - numTaken).CopyTo(peer.Buffer);
            peer.NumBuffered -= numTaken;
            return true;
        }
        catch (InvalidDataException problem)
        {
            roster.SetFault($"Group {roster.Name}: rank {roster.Describe(peer.Rank)} does not follow the protocol: {problem.Message}.", roster.GlobalRanks[peer.Rank]);
            return false;
        }
    }

    /// <summary>Locked by whoever writes.</summary>
    private sealed class Peer(int rank, Socket socket, byte[] buffer)
    {
        public int Rank => rank;

        public Socket Socket => socket;

        public byte[] Buffer => buffer;

        public int NumBuffered { get; set; }

        public bool IsBroken { get; set; }
    }
}
